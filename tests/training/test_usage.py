from pathlib import Path

import pytest
import torch

from lighten.training import usage
from lighten.training.usage import CPU, GPU, MACHINE, NAMES, PROCESS, Usage


@pytest.fixture
def clocks(monkeypatch):
    """Wall and processor seconds, to be set."""
    told = {"wall": 100.0, "spent": 7.0}
    monkeypatch.setattr(usage.time, "monotonic", lambda: told["wall"])
    monkeypatch.setattr(usage.time, "process_time", lambda: told["spent"])
    monkeypatch.setattr(usage.os, "cpu_count", lambda: 4)
    return told


def test_the_processors_share_is_that_since_the_last_look(clocks) -> None:
    looker = Usage()
    clocks.update(wall=102.0, spent=11.0)
    assert looker.look()[CPU] == 50.0  # four seconds of eight
    clocks.update(wall=104.0, spent=11.0)
    assert looker.look()[CPU] == 0.0
    clocks.update(spent=99.0)
    assert looker.look()[CPU] == 100.0, "no time has passed"


def test_memory_is_that_of_the_kernel(monkeypatch) -> None:
    monkeypatch.setattr(usage, "_PAGE", 0.004)
    files = {"/proc/self/statm": "900 250000 1 1", "/proc/meminfo": "MemTotal: 8000 kB\nMemAvailable: 6000 kB\n"}
    monkeypatch.setattr(Path, "read_text", lambda self: files[str(self)])
    found = Usage().look()
    assert (found[PROCESS], found[MACHINE]) == (1000.0, 25.0)


def test_elsewhere_it_is_left_out(monkeypatch) -> None:
    def missing(self):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert set(Usage().look()) == {CPU}


def test_a_gpu_is_asked_only_once_it_is_used(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 3_000_000)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert GPU not in Usage().look()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    found = Usage().look()
    assert found[GPU] == 3.0
    assert set(found) == set(NAMES)
