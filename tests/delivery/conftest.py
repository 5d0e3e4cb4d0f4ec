"""A run folder with plausible contents, so that what reads it is tested without a fit."""

from pathlib import Path

import pytest
from finished_run import write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with teacher, plan, history and scores."""
    return write_run(tmp_path / "runs" / "distil_cnn" / "20261124-091200")
