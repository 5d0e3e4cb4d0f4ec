"""The map of the code and the names of the tests agree with the tree."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "lighten"
PAGE = (ROOT / "docs" / "contributing.md").read_text()
LONG = 150
"""Lines of a source that must have a test of its name."""


def test_every_path_on_the_map_exists():
    paths = [word for word in re.findall(r"`([\w./-]+)`", PAGE) if "/" in word or word.endswith((".py", ".toml"))]
    assert len(paths) > 30
    roots = [ROOT, SOURCE, SOURCE / "run", SOURCE / "delivery", SOURCE / "pruning"]
    missing = [path for path in paths if not any((root / path).exists() for root in roots)]
    assert not missing


def test_every_room_is_on_the_map():
    rooms = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(re.findall(r"\| `src/lighten/(\w+)/`", PAGE)) == rooms


def test_the_layers_on_the_map_are_those_of_the_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [c["layers"] for c in contracts if c.get("containers") == ["lighten"]]
    (drawn,) = re.findall(r"```text\n(.*?)\n```", PAGE, re.DOTALL)
    assert drawn.split("\n") == layers


@pytest.mark.parametrize(
    "path", [p for p in sorted(SOURCE.rglob("*.py")) if len(p.read_text().splitlines()) > LONG], ids=lambda p: p.stem
)
def test_a_long_source_has_a_test_of_its_name(path):
    assert (ROOT / "tests" / path.relative_to(SOURCE).with_name(f"test_{path.name}")).is_file()
