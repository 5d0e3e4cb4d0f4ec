import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cluster import slurm


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A Slurm of two nodes, of 4 processors and 2 devices each, that only counts them."""
    with slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running
