"""Whatever comes to one of two processes, or to both: all of them end, and the last line says why.

A few of the cells that ``benchmarks/reliability.py hangs`` has all of; here seconds decide nothing, but a hang.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from hangs import MATRIX, SCRIPT, Cell, faults
from torch.utils._pytree import tree_leaves

from lighten.training.checkpoint import AtomicCheckpointIO, latest_good
from lighten.utils.files import remove_stale

CELLS = [
    Cell("lightning", "KILL", "0"),
    Cell("lightning", "raise", "1", skew=True),
    Cell("lightning", "range", "1"),
    Cell("lightning", "disk", "0"),
    Cell("torchrun", "STOP", "1", skew=True),
]
OTHERS = [
    Cell("lightning", "STOP", "0,1"), Cell("lightning", "nan", "1"), Cell("torchrun", "USR1", "0"),
]  # fmt: skip
A_HANG = 150.0
LAST = "last-epoch=000-step=0000002"
"""The checkpoint of the first epoch where an epoch has two steps."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {cell: tmp_path_factory.mktemp(cell.harm) for cell in CELLS}


@pytest.fixture(scope="module")
def found(folders):
    """Return what was wrong with the end of each fit; two run at a time."""

    def run(cell):
        return faults(cell, folders[cell], seconds=A_HANG)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(CELLS, pool.map(run, CELLS), strict=True))


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_all_end_and_the_last_line_is_the_cause(found, cell):
    assert found[cell] == []


@pytest.mark.slow
@pytest.mark.parametrize("cell", OTHERS, ids=str)
def test_so_it_is_where_both_stand_still_or_the_loss_is_nan(cell, tmp_path):
    assert faults(cell, tmp_path, seconds=A_HANG) == []


@pytest.mark.parametrize("harm", ["range", "disk"])
def test_the_last_good_checkpoint_stays_and_is_finite(found, folders, harm):
    """The harm comes in the last step of the second epoch, right before its checkpoint."""
    (folder,) = [folders[cell] for cell in found if cell.harm == harm]
    remove_stale(folder, deep=True)  # as the next start does
    kept = sorted(path.name for path in (folder / "run" / "checkpoints").iterdir())
    assert kept == [f"{LAST}.ckpt", f"{LAST}.ckpt.manifest.json"]
    checkpoint = AtomicCheckpointIO().load_checkpoint(latest_good(folder / "run" / "checkpoints"))
    tensors = tree_leaves([checkpoint["state_dict"], checkpoint["optimizer_states"]])
    assert all(tensor.isfinite().all() for tensor in tensors if isinstance(tensor, torch.Tensor))
    assert not any("nan" in line.lower() or "inf" in line.lower() for line in _history(folder))
    assert not list(folder.rglob(".*"))


def _history(folder):
    path = folder / "run" / "history.jsonl"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.slow
def test_one_that_does_not_come_is_waited_for_as_long_as_was_asked(tmp_path):
    assert faults(Cell("lightning", "sleep", "1"), tmp_path, seconds=A_HANG) == []


@pytest.mark.slow
def test_both_skip_what_is_bad_on_one(tmp_path):
    command = [sys.executable, str(SCRIPT), "recipe=smoke", f"runs={tmp_path}", "trainer.devices=2"]
    environment = {**os.environ, **Cell("lightning", "nan", "1").environment}
    done = subprocess.run(
        [*command, "on_bad_batch=skip"], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].startswith("warning: 1 of 40 steps were skipped, as they were not finite; ")
    assert "the loss is nan on rank 1 at step 3 (epoch 0)" in done.stderr
    first, second = [json.loads((tmp_path / f"weights{rank}").read_text()) for rank in (0, 1)]
    assert first == second


def test_the_matrix_is_whole():
    assert len(MATRIX) == len(set(MATRIX)) == 3 * 5 * 3 * 2
