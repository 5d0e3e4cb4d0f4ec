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

sys.path.insert(0, str(Path(__file__).parent))

from hangs import MATRIX, SCRIPT, Cell, faults

CELLS = [
    Cell("lightning", "KILL", "0"),
    Cell("lightning", "STOP", "0,1"),
    Cell("lightning", "raise", "1", skew=True),
    Cell("lightning", "nan", "1"),
    Cell("torchrun", "STOP", "1", skew=True),
    Cell("torchrun", "USR1", "0"),
]
A_HANG = 150.0


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return what was wrong with the end of each fit; two run at a time."""

    def run(cell):
        return faults(cell, tmp_path_factory.mktemp(cell.harm), seconds=A_HANG)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(CELLS, pool.map(run, CELLS), strict=True))


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_all_end_and_the_last_line_is_the_cause(found, cell):
    assert found[cell] == []


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
