"""Two ranks and one cache of the teacher's answers: a part each, read by both, and no kill changes the end."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from processes import run_fits

from lighten.distillation.cache import TeacherCache

SCRIPT = Path(__file__).with_name("cached_fit.py")
SAMPLES, VIEWS, STEPS = 1000, 2, 7


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Run all fits; return their folder."""
    folder = tmp_path_factory.mktemp("cached")
    told = run_fits(SCRIPT, folder, ports=4)
    ended = json.loads((folder / "ended.json").read_text())
    killed = ended.pop("killed")
    assert killed[1] == -9
    assert killed[0] != 0
    assert ended == {name: [0, 0] for name in ("straight", "resumed", "again")}, told[-3000:]
    return folder


def seen(home: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads((home / name / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_each_rank_writes_a_part_and_both_read_all(home, tmp_path) -> None:
    first, second = seen(home, "straight")
    assert first["weights"] == second["weights"]
    assert (first["filled"], second["filled"]) == (1.0, 1.0)
    for found in (first, second):  # seven batches, and a share of the samples that the loader drops
        assert found["asked"] == {"0": STEPS + 1, "1": STEPS + 1, "2": 0, "3": 0}
    identity = json.loads((home / "one" / "meta.json").read_text())["identity"]
    shares = []
    for rank in (0, 1):
        alone = tmp_path / str(rank)
        alone.mkdir()
        for name in ("meta.json", f"part-{rank}.bin"):
            shutil.copy(home / "one" / name, alone / name)
        cache = TeacherCache(alone)
        cache.open(identity, samples=SAMPLES, views=VIEWS, outputs=10, rank=rank, world=2)
        shares.append(cache.filled)
    assert min(shares) > 0.4
    assert sum(shares) == pytest.approx(1.0)


def test_a_rank_killed_while_it_writes_is_made_up_for(home) -> None:
    straight, resumed = seen(home, "straight"), seen(home, "killed")
    assert [found["resumed"] for found in resumed] == [True, True]
    assert [found["weights"] for found in resumed] == [found["weights"] for found in straight]
    assert [found["filled"] for found in resumed] == [1.0, 1.0]
    first, second = (found["asked"] for found in resumed)
    assert second == {"1": STEPS + 1 - 3, "2": 0, "3": 0}  # three batches were kept, and half of one is asked again
    assert first["1"] in (STEPS + 1 - 3, STEPS + 1 - 4)  # how far rank 0 came with the fourth is open
    assert (first["2"], first["3"]) == (0, 0)


def test_a_full_cache_is_read_without_asking(home) -> None:
    again = seen(home, "again")
    assert [found["weights"] for found in again] == [found["weights"] for found in seen(home, "straight")]
    for found in again:
        assert found["asked"] == dict.fromkeys("0123", 0)
