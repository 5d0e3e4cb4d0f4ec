"""What the pages get beside their text."""

import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hooks():
    spec = spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_page_says_which_version_it_is_of(hooks):
    config = SimpleNamespace(config_file_path=str(ROOT / "mkdocs.yml"), site_name="lighten")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert hooks.on_config(config).site_name == f"lighten {version}"


def test_cross_references_are_shown_by_their_last_name(hooks):
    html = "<p>:func:<code>~lighten.pruning.cut.shrink</code> and <code>a.b</code></p>"
    assert hooks.on_page_content(html) == "<p><code>shrink</code> and <code>a.b</code></p>"
