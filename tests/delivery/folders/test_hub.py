"""Uploads by the real client, ``huggingface_hub``, to a real HTTP server that stands for the hub."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from hub_server import TOKEN, hub_server
from huggingface_hub import constants

import lighten
from lighten.cli.main import main as cli
from lighten.delivery.folders.hub import files_of
from lighten.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client speaks to its own

SHAPE = (1, 12, 12)
SECRET = "hf_SecretSecretSecret"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its storage is another server
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no" / "token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run folder with a student, what was exported of it, its card, and much that is nobody else's business."""
    torch.manual_seed(0)
    model = lighten.build_model("resnet20", num_classes=4, input_shape=SHAPE, width=4, blocks=1).eval()
    run = tmp_path_factory.mktemp("runs") / "one"
    plan = lighten.plan_pruning(model, torch.randn(2, *SHAPE), 0.5)
    small = lighten.shrink(model, plan)
    lighten.save(small, run / "student")
    lighten.export_onnx(small, torch.randn(1, *SHAPE), run / "student.onnx")
    (run / "student" / "README.md").write_text('# A card\n`snapshot_download("NAME/REPO")`\n')
    (run / "student" / "tokenizer.json").write_text("{}")
    for name in (".env", "recipe.yaml", "student/.netrc", "student/notes.txt", "student/token", "student/.git"):
        (run / name).write_text(SECRET)
    return run


@pytest.fixture
def run(made, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(made, tmp_path / "runs" / "x" / "one")


def test_a_model_folder_is_uploaded_with_its_card_and_loads_from_there(hub, run, tmp_path):
    address = lighten.push_to_hub(run / "student", "me/tiny", private=True)
    assert address == f"{hub.url}/me/tiny"
    assert hub.private == {"me/tiny": True}
    there = hub.repos["me/tiny"]
    assert set(there) == {
        "config.json", "model.safetensors", "compression.json", "README.md", "tokenizer.json", "model.onnx",
    }  # fmt: skip
    assert there["model.safetensors"] == (run / "student" / "model.safetensors").read_bytes()
    assert there["model.onnx"] == (run / "student.onnx").read_bytes()
    assert there["README.md"] == b'# A card\n`snapshot_download("me/tiny")`\n'
    folder = tmp_path / "down"
    folder.mkdir()
    for name, content in there.items():
        (folder / name).write_bytes(content)
    x = torch.randn(3, *SHAPE)
    with torch.no_grad():
        expected = lighten.load(run / "student")(x)
        assert torch.equal(lighten.load(folder)(x), expected)
    torch.testing.assert_close(torch.from_numpy(lighten.load(folder, runtime="onnxruntime")(x)), expected)


def test_nothing_else_of_the_folder_leaves_the_machine(hub, run):
    lighten.push_to_hub(run / "student", "me/tiny")
    sent = [*hub.repos["me/tiny"].values(), *hub.blobs.values()]
    assert not [content for content in sent if SECRET.encode() in content or TOKEN.encode() in content]


def test_a_link_to_a_file_elsewhere_is_refused(hub, run):
    (run / "student" / "tokenizer.json").unlink()
    (run / "student" / "tokenizer.json").symlink_to(run / ".env")
    with pytest.raises(UserError, match=r"tokenizer\.json: is a link to another file, which is not uploaded"):
        lighten.push_to_hub(run / "student", "me/tiny")
    assert hub.requests == []


def test_what_is_no_longer_in_the_folder_goes_and_what_others_put_there_stays(hub, run):
    lighten.push_to_hub(run / "student", "me/tiny")
    hub.repos["me/tiny"]["LICENSE"] = b"theirs"
    (run / "student" / "tokenizer.json").unlink()
    (run / "student.onnx").unlink()
    (run / "student" / "README.md").unlink()
    lighten.push_to_hub(run / "student", "me/tiny")
    assert set(hub.repos["me/tiny"]) == {
        "config.json", "model.safetensors", "compression.json", "README.md", "LICENSE",
    }  # fmt: skip
    assert hub.repos["me/tiny"]["README.md"].startswith(b"# A card")


def test_a_folder_without_a_card_gets_one(hub, run):
    (run / "student" / "README.md").unlink()
    lighten.push_to_hub(run / "student", "bare")
    card = hub.repos["me/bare"]["README.md"].decode()
    assert card.startswith("---\nlibrary_name: lighten\n")
    assert 'load(snapshot_download("me/bare"))' in card


def test_the_card_of_a_model_of_ones_own_asks_for_an_instance(hub, tmp_path):
    lighten.push_to_hub(lighten.save(torch.nn.Linear(2, 2), tmp_path / "own"), "own")
    assert 'load(snapshot_download("me/own"), model=Linear(…))' in hub.repos["me/own"]["README.md"].decode()


def test_the_token_that_is_given_is_used(hub, run, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    lighten.push_to_hub(run / "student", "me/tiny", token=TOKEN)
    assert "me/tiny" in hub.repos


@pytest.mark.parametrize("token", [None, "hf_of_a_stranger"])
def test_without_a_token_or_with_a_wrong_one_it_says_how_to_log_in(hub, run, monkeypatch, token):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError) as caught:
        lighten.push_to_hub(run / "student", "me/tiny", token=token)
    assert str(caught.value).startswith("me/tiny: the hub takes nothing from you (401); log in with `hf auth login`")
    assert "stranger" not in str(caught.value)
    assert hub.repos == {}


def test_offline_and_a_hub_that_cannot_be_reached_are_told_apart(hub, run, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="me/tiny: HF_HUB_OFFLINE is set, so nothing is uploaded; unset it where"):
        lighten.push_to_hub(run / "student", "me/tiny")
    assert hub.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"not uploaded to http://127\.0\.0\.1:9 .*try again where there is a network"):
        lighten.push_to_hub(run / "student", "me/tiny")


def test_a_hub_that_fails_is_told_in_a_line(hub, run):
    hub.down = True
    with pytest.raises(UserError, match=r"me/tiny: the hub refuses .*503") as caught:
        lighten.push_to_hub(run / "student", "me/tiny")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a/b/c", "../x", "me/ tiny", "me/tiny.git", "https://huggingface.co/me/tiny", 3])
def test_what_is_no_name_of_a_repository_is_refused_before_anything_else(hub, run, name):
    with pytest.raises(UserError, match="no name of a repository, expected NAME/REPO"):
        lighten.push_to_hub(run / "none", name)
    assert hub.requests == []


def test_what_is_no_model_folder_is_refused(run, tmp_path):
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match=r"no model folder, config\.json and model\.safetensors are not both in it"):
            files_of(folder)
    with pytest.raises(UserError, match=r"one/student\?$"):
        files_of(run)
    (run / "student" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no model folder"):
        files_of(run / "student")


def test_without_its_package_it_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="needs huggingface_hub; install it with: pip install huggingface_hub"):
        lighten.push_to_hub(run / "student", "me/tiny")


def test_the_command_takes_a_run_or_a_folder_and_prints_the_address(hub, run, capsys):
    for number, folder in enumerate((run, run / "student")):
        assert cli(["push", str(folder), f"me/n{number}", "--private"]) == 0, capsys.readouterr().err
        shown = capsys.readouterr()
        assert shown.out == f"{hub.url}/me/n{number}\n"
        assert "\r" not in shown.err
    assert hub.private == {"me/n0": True, "me/n1": True}
    assert hub.repos["me/n0"] == hub.repos["me/n1"] | {
        "README.md": hub.repos["me/n1"]["README.md"].replace(b"n1", b"n0")
    }
    assert cli(["push", str(run), "a/b/c"]) == 1
    assert capsys.readouterr().err.startswith("error: 'a/b/c': no name of a repository")


def test_the_environment_says_where_the_hub_is(hub, run):
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "lighten.cli", "push", str(run), "me/tiny"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{hub.url}/me/tiny\n", "")
    assert json.loads(hub.repos["me/tiny"]["config.json"])["model"]["name"] == "resnet20"
