"""A starting project: what is written, what is never overwritten, and that it runs as it is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from lighten.cli import init
from lighten.cli.main import main

ROOT = Path(__file__).parents[2]
FILES = ["recipes/mine.yaml", "train.py", "slurm/sweep.sbatch", "slurm/train.sbatch"]


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("words", [[], ["new/project"]], ids=["here", "a folder"])
def test_a_project_is_written_and_its_next_command_told(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", *words]) == 0
    folder = tmp_path.joinpath(*words)
    sources = [ROOT / name if name.startswith("slurm") else ROOT / "start" / name for name in FILES]
    assert files_of(folder) == {name: source.read_bytes() for name, source in zip(FILES, sources, strict=True)}
    *written, following = capsys.readouterr().out.splitlines()
    assert [tmp_path / name for name in written] == [folder / name for name in FILES]
    into = f"cd {words[0]} && " if words else ""
    assert following == f"next: {into}python train.py recipe=mine"


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_overwritten_and_then_nothing_written(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("mine")
    assert main(["init"]) == 1
    assert capsys.readouterr() == (
        "",
        f"error: {name}: there already; give another folder, as: lighten init my-project\n",
    )
    assert files_of(tmp_path) == {name: b"mine"}


def test_a_link_that_leads_nowhere_is_there_too(tmp_path, capsys):
    (tmp_path / "train.py").symlink_to("nowhere")
    assert main(["init", str(tmp_path)]) == 1
    assert "train.py: there already" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["file", "file/below"])
def test_what_is_no_folder_is_told_in_one_line(given, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert main(["init", given]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: file")
    assert shown.err.count("\n") == 1


def test_a_disk_that_refuses_in_the_middle_leaves_nothing(tmp_path, monkeypatch, capsys):
    plain = Path.open

    def refuse(path, mode="r", *args, **kwargs):
        if path.name == "sweep.sbatch" and mode == "xb":
            raise OSError(28, "No space left on device", str(path))
        return plain(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    assert main(["init", str(tmp_path / "new")]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert files_of(tmp_path) == {}


def test_its_train_py_ends_as_that_of_the_repository():
    """The starting one knows a network besides; the door is the same."""
    doors = []
    for path in (ROOT / "train.py", ROOT / "start" / "train.py"):
        lines = path.read_text().splitlines()
        doors.append(lines[next(n for n, line in enumerate(lines) if "import main" in line) :])
    assert doors[0] == doors[1]


def test_its_train_py_is_read_without_torch():
    """So that a signal that comes early waits, as in the repository's own."""
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1]); print([m for m in ('torch', 'lightning') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(ROOT / "start" / "train.py")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_what_is_written_is_documented():
    tree = ast.parse((ROOT / "start" / "train.py").read_text())
    assert all(
        ast.get_docstring(node) for node in [tree, *tree.body] if hasattr(node, "body") and not isinstance(node, ast.If)
    )
    recipe = (ROOT / "start" / "recipes" / "mine.yaml").read_text().splitlines()
    assert recipe[1] == "# python train.py recipe=mine"


KNOWN = """
import runpy
from pathlib import Path
import torch
from lighten import build_model
from lighten.recipe.compose import compose_all
runpy.run_path("train.py")
(recipe,) = compose_all(["recipe=mine"], Path("recipes"))
network = build_model(recipe.student, num_classes=7, input_shape=(1, 28, 28), **recipe.student_options)
print(recipe.student, tuple(network(torch.zeros(2, 1, 28, 28)).shape), network[0].out_channels)
"""


def test_its_recipe_is_one_of_its_network(tmp_path):
    """What it trains to: tests/test_wheel.py."""
    init.write_start(tmp_path)
    done = subprocess.run([sys.executable, "-c", KNOWN], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("mine (2, 7) 32\n", 0), done.stderr
