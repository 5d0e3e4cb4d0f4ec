"""Distil, prune and quantize in one fit: 1, 2 and 4 processes with one global batch end alike."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import run_fits

SCRIPT = Path(__file__).with_name("together_fit.py")
EXACT = ("plan", "masks", "stage", "ranges")


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """Return what every process saw, by fit and ``<ranks>-<rank>``."""
    folder = tmp_path_factory.mktemp("together")
    run_fits(SCRIPT, folder, ports=3)
    return {
        case.name: {path.stem: json.loads(path.read_text()) for path in case.iterdir()} for case in folder.iterdir()
    }


@pytest.mark.parametrize("case", ["plain", "histograms", "accumulate", "accumulate-histograms", "sync"])
def test_processes_of_one_global_batch_see_the_same_plans_masks_and_ranges(ended, case) -> None:
    found = ended[case]
    one = found["1-0"]
    assert sorted(found) == ["1-0", "2-0", "2-1", "4-0", "4-1", "4-2", "4-3"]
    assert [step["stage"] for step in one["seen"]] == [0] * 8 + [2] * 4
    assert len({step["masks"] for step in one["seen"]}) > 2
    for who, other in found.items():
        for name in EXACT:
            assert [step[name] for step in other["seen"]] == [step[name] for step in one["seen"]], (who, name)
        np.testing.assert_allclose(other["losses"], one["losses"], rtol=1e-6, atol=0, err_msg=who)
        assert other["weights"] == found[f"{who[0]}-0"]["weights"]


@pytest.mark.parametrize("histograms", ["", "-histograms"])
def test_accumulated_gradients_are_those_of_the_whole_batch(ended, histograms) -> None:
    whole, parts = ended[histograms.lstrip("-") or "plain"]["1-0"], ended[f"accumulate{histograms}"]["1-0"]
    assert [[step[name] for name in EXACT] for step in parts["seen"]] == [
        [step[name] for name in EXACT] for step in whole["seen"]
    ]
    np.testing.assert_allclose(parts["losses"], whole["losses"], rtol=1e-6, atol=0)


def test_synchronised_norms_are_folded_and_come_back(ended) -> None:
    """Lightning replaces every batch norm at both ends of the fit."""
    assert ended["sync"]["2-0"]["norms"] == ended["sync"]["4-3"]["norms"] == ["SyncBatchNorm"]
    for found in ended["sync"].values():
        assert found["exported"]
        assert (found["sparsity"], found["widths"]) == (0.5, [4, 3])


def test_synchronised_norms_on_cpus_are_refused_in_one_line_on_all_ranks(ended) -> None:
    """The other fits have a stand-in that works there."""
    for rank in (0, 1):
        (told,) = ended["sync"][f"2-{rank}"]["refused"]
        assert told == "sync_batchnorm=True: torch synchronises batch norm between GPUs alone; leave it off on CPUs"


def test_mixed_precision_gives_all_ranks_one_plan_and_one_set_of_masks(ended) -> None:
    for who, found in ended["bf16"].items():
        first = ended["bf16"][f"{who[0]}-0"]
        assert (found["seen"], found["weights"]) == (first["seen"], first["weights"])
        assert (found["sparsity"], found["exported"]) == (0.5, True)


@pytest.mark.parametrize("case", ["static-graph", "unused"])
def test_other_wrappings_give_the_same_bits(ended, case) -> None:
    """``static_graph`` with gradients as views of the buckets; ``find_unused_parameters``."""
    assert ended[case] == {who: found for who, found in ended["plain"].items() if who[0] == "2"}
