"""What all hostile input has in common: a payload that would leave a mark, and how it must be answered."""

import os
import pickle
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest

from lighten.cli.main import main as cli
from lighten.errors import UserError, one_line

OUTSIDE = "outside-7f3a"
"""Stands in a file that no input here has any business with, and in the environment."""


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working folder whose command line is tried out; the mark would appear beside it."""
    folder = tmp_path / "home"
    (folder / "recipes").mkdir(parents=True)
    (tmp_path / "outside.txt").write_text(OUTSIDE)
    monkeypatch.chdir(folder)
    datasets.disable_progress_bars()
    monkeypatch.setenv("MADE_UP_SECRET", OUTSIDE)
    monkeypatch.setenv("LIGHTEN_CACHE", str(tmp_path / "lighten"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return SimpleNamespace(
        folder=folder, marker=tmp_path / "marker", outside=tmp_path / "outside.txt", recipes=folder / "recipes",
        pickled=pickle.dumps(Bomb(tmp_path / "marker")), bomb=Bomb(tmp_path / "marker"),
        python=f"open({str(tmp_path / 'marker')!r}, 'w')\n",
    )  # fmt: skip


@pytest.fixture
def answered(home, capsys):
    """Return a function that runs words of the command line, or a call, and checks that the answer is one clear line.

    It returns that line, or what else was printed. With ``harmless`` the input may also be taken, as long as nothing
    comes of it.
    """

    def answer(work: Sequence[str] | Callable[[], object], *, harmless: bool = False) -> str:
        signal.signal(signal.SIGALRM, _hangs)
        signal.alarm(120)
        try:
            code = _done(work, home.recipes)
        finally:
            signal.alarm(0)
        out, err = capsys.readouterr()
        stages = [line for line in err.splitlines() if line.endswith(" …") and not line.startswith("error: ")]
        lines = [line for line in err.splitlines() if line not in stages]
        assert not home.marker.exists()
        assert OUTSIDE not in out + err
        assert not [path for path in home.folder.rglob("*") if OUTSIDE in path.name]
        if harmless and code == 0:
            return out
        assert code in (1, 2)
        assert len(lines) == 1, err
        assert lines[0].startswith("error: ")
        assert lines[0].isprintable()
        assert "Traceback" not in out + err
        assert len(lines[0]) < 1100
        return lines[0]

    return answer


def _done(work, recipes: Path) -> int:
    if callable(work):
        try:
            work()
        except UserError as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            return 1
        return 0
    if any(word.startswith("recipe=") for word in work):
        return cli(work, recipes=recipes, default="train")
    return cli(work)


def _hangs(number, frame):
    raise TimeoutError("no answer")
