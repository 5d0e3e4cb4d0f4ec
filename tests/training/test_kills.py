"""A few of the kills that ``benchmarks/reliability.py kills`` counts by the hundred, of real runs by recipe."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COUNT = 1


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bits_and_damage_is_noticed() -> None:
    """At random, inside saves, before a mask, between a batch's cached answers; then flipped bits and cut ends."""
    ways = ["random", "saves", "resumes", "steps", "fill", "damage"]
    command = [sys.executable, BENCHMARKS / "reliability.py", "kills", *ways, "--count", str(COUNT), "--epochs", "2"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in told.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ways, told.stderr
    assert all(row[1] == str(COUNT) and int(row[2]) >= COUNT and row[4] == "nothing" for row in rows), rows
    moments = dict(line.split(": ", 1) for line in told.stderr.splitlines() if line.partition(":")[0] in ways)
    assert moments["random"] == f"by the clock {COUNT}"
    assert moments["steps"] == f"apply_ {COUNT}"
    assert moments["fill"] == f"pwrite {COUNT}"
    assert "by the clock" not in moments["saves"] + moments["resumes"]
    assert told.returncode == 0, told.stderr
