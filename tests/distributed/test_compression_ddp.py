"""Pruning and quantization over two processes: one plan, one set of ranges, the same bits."""

import json
from pathlib import Path

import pytest
from processes import run_fits

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("compression_fit.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Return what both ranks ended with, by fit."""
    folder = tmp_path_factory.mktemp("ddp")
    run_fits(SCRIPT, folder)
    return {
        path.name: [json.loads((path / f"rank{rank}.json").read_text()) for rank in (0, 1)] for path in folder.iterdir()
    }


@pytest.mark.parametrize("name", ["straight", "reverse"])
def test_both_ranks_end_with_one_plan_and_the_same_bits(ranks, name):
    first, second = ranks[name]
    assert first == second
    assert (first["told"], first["sparsity"], first["dead"]) == (None, 0.5, 4)


@pytest.mark.parametrize("name", ["taylor", "sensitivity", "soft"])
def test_every_way_to_decide_gives_both_ranks_the_same_masks_at_every_step(ranks, name):
    first, second = ranks[name]
    assert first == second
    assert len(set(first["hashes"])) > 2
    if name == "sensitivity":
        assert first["saved"] == pytest.approx(0.5, abs=0.08)  # 14 channels in all
    else:
        assert first["sparsity"] == 0.5


def test_the_order_of_the_callbacks_changes_nothing(ranks):
    assert ranks["straight"][0] == ranks["reverse"][0]


def test_a_rank_that_has_drifted_is_caught_at_the_next_update_on_both(ranks):
    for found in ranks["drift"]:
        step, _, words = found["told"].partition(" ")
        assert int(step) == 13
        assert "ranks hold different pruning plans at step 13" in words
