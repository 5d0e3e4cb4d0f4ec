"""Some of the disks that ``benchmarks/reliability.py disks`` lets refuse in the middle of real runs by recipe."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_a_refused_run_says_so_and_goes_on_with_the_same_bits() -> None:
    _all_good("checkpoint", "history", "cache's answers", "teacher's weights", count=4)


@pytest.mark.slow
def test_so_it_does_at_other_places_and_when_it_delivers() -> None:
    _all_good(count=13)


def _all_good(*places: str, count: int) -> None:
    command = [sys.executable, BENCHMARKS / "reliability.py", "disks", *places, "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} of {count} cases are good" in done.stdout
