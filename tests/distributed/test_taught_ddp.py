"""``Distill`` on two ranks, whole or in shards, is the fit of one process on the same batches."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from processes import run_fits

SCRIPT = Path(__file__).with_name("taught_fit.py")


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Return what the ranks saw, by case, kind and rank."""
    folder = tmp_path_factory.mktemp("taught")
    run_fits(SCRIPT, folder)
    alone = runpy.run_path(str(SCRIPT))
    for case in alone["CASES"]:
        alone["fit"](folder, case, 1, "one")
    return {path.stem: json.loads(path.read_text()) for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("automatic", "ddp"), ("by hand", "ddp"), ("accumulated", "ddp"), ("projected", "ddp"),
        ("automatic", "fsdp2"), ("by hand", "fsdp2"), ("accumulated", "fsdp2"),
    ],
)  # fmt: skip
def test_two_ranks_equal_one(ended, case, kind):
    one, first, second = ended[f"{case}-one-0"], ended[f"{case}-{kind}-0"], ended[f"{case}-{kind}-1"]
    assert first["weights"] == second["weights"]
    assert first["weights"].keys() == one["weights"].keys()
    for name, weight in one["weights"].items():
        np.testing.assert_allclose(first["weights"][name], weight, rtol=0, atol=1e-10, err_msg=name)
    assert first["sharded"] == (kind == "fsdp2")
    for found in (first, second):
        assert found["outside"]
        assert not found["teacher_changed"]
        assert "distil/soft_labels" in found["logged"]


def test_projections_of_shards_are_refused_in_one_line(ended):
    for rank in (0, 1):
        told = ended[f"projected-fsdp2-{rank}"]["told"]
        assert told.startswith("'0->0' maps the width of a layer to the teacher's, and an optimizer of sharded weights")
        assert "\n" not in told
