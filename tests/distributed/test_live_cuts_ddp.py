"""Pruning by cuts over processes: one network on all ranks after each cut, its wrapper made anew, no leak."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import run_fits

SCRIPT = Path(__file__).with_name("live_cuts_fit.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Return what the two ranks saw, by fit."""
    return seen(tmp_path_factory.mktemp("live"), 2, "fits")


def seen(folder, count, which):
    run_fits(SCRIPT, folder, count, which)
    return {
        path.name: [json.loads((path / f"rank{rank}.json").read_text()) for rank in range(count)]
        for path in folder.iterdir()
    }


@pytest.mark.parametrize("case", ["cuts", "accumulation"])
def test_ranks_hold_the_same_bits_after_every_step(ranks, case):
    same_bits(*ranks[case])


def same_bits(first, *others):
    for other in others:
        assert other["hashes"] == first["hashes"]
        assert (other["plan"], other["shape"]) == (first["plan"], [8, 1, 3, 3])
        assert other["wrappers"] == first["wrappers"] == 1  # old ones are gone, with their buckets


@pytest.mark.slow
def test_so_they_do_however_the_wrapper_is_set(tmp_path):
    found = seen(tmp_path, 2, "wrappers")
    assert set(found) == {"view", "static", "unused", "small buckets"}
    for ranks in found.values():
        same_bits(*ranks)


@pytest.mark.parametrize(("case", "other"), [("cuts", "masks"), ("accumulation", "accumulated masks")])
def test_ends_with_the_weights_of_masks(ranks, case, other):
    cut, masked = ranks[case][0], ranks[other][0]
    assert cut["plan"] == masked["plan"]
    live = [sorted(abs(v) for v in values if v) for values in masked["state"][:2]]
    for values, expected in zip(cut["state"][:2], live, strict=True):
        assert sorted(map(abs, values)) == pytest.approx(expected, abs=1e-9)


def test_gradients_on_the_wire_shrink(ranks):
    sizes = ranks["cuts"][0]["bytes"]
    assert sizes[-1] < 0.5 * sizes[0]
    assert len(set(sizes)) == 4
    assert set(ranks["masks"][0]["bytes"]) == {sizes[0]}


def test_a_resumed_fit_ends_with_the_same_bits(ranks):
    whole, resumed = ranks["cuts"][0], ranks["resumed"][0]
    assert resumed["state"] == whole["state"]
    assert resumed["hashes"] == whole["hashes"][-len(resumed["hashes"]) :]


@pytest.mark.slow
def test_four_ranks_hold_the_same_bits(tmp_path):
    found = seen(tmp_path, 4, "fits")
    for ranks in found.values():
        assert all(one["hashes"] == ranks[0]["hashes"] for one in ranks)
    same_bits(*found["cuts"])
    same_bits(*found["accumulation"])


@pytest.mark.slow
def test_who_spawned_the_fit_has_the_cut_network():
    script = SCRIPT.with_name("live_spawn_fit.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240, check=False)
    assert "width 8 8" in done.stdout, done.stderr[-2000:]
