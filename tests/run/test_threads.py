"""A run leaves busy cores to whoever has them."""

import json
from dataclasses import replace

import pytest
import torch

from lighten.recipe.schema import Recipe
from lighten.run import threads
from lighten.run.threads import settle_threads
from lighten.utils import machine


@pytest.fixture
def four_cores(monkeypatch):
    """Four cores, of which this many are busy; torch has a thread for each."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(threads, "cores", lambda: 4)
    before = torch.get_num_threads()

    def busy(count):
        torch.set_num_threads(4)
        monkeypatch.setattr(threads, "busy_cores", lambda seconds, wait: count)

    yield busy
    torch.set_num_threads(before)


@pytest.mark.parametrize(("busy", "left"), [(0.2, 4), (0.9, 3), (2.6, 1), (4.0, 1)])
def test_it_takes_the_cores_that_are_free_and_says_so(busy, left, four_cores, tmp_path):
    four_cores(busy)
    line = settle_threads(Recipe(name="x"), tmp_path)
    assert torch.get_num_threads() == left
    assert json.loads((tmp_path / "threads.json").read_text())["threads"] == left
    assert line is None if left == 4 else f"takes {left} of 4 threads" in line


def test_a_resumed_run_has_as_many_as_it_began_with(four_cores, tmp_path):
    four_cores(2.0)
    settle_threads(Recipe(name="x"), tmp_path)
    four_cores(0.0)
    assert settle_threads(Recipe(name="x"), tmp_path) is None
    assert torch.get_num_threads() == 2


def test_who_asks_for_threads_or_has_several_processes_keeps_them(four_cores, tmp_path, monkeypatch):
    four_cores(3.0)
    several = Recipe(name="x")
    several.trainer = replace(several.trainer, devices=2)
    assert settle_threads(several, tmp_path) is None
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert settle_threads(Recipe(name="x"), tmp_path) is None
    assert torch.get_num_threads() == 4
    assert not list(tmp_path.iterdir())


def test_busy_cores_are_read_off_the_ticks_of_the_system(monkeypatch):
    looks = iter([[100, 0, 100, 700, 100, 0, 0, 0], [130, 0, 120, 800, 150, 0, 0, 0]])
    monkeypatch.setattr(machine, "_ticks", lambda: next(looks))
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 4)
    assert machine.busy_cores(1.0, wait=lambda seconds: None) == pytest.approx(4 * 50 / 200)
    monkeypatch.setattr(machine, "_ticks", list)
    assert machine.busy_cores(1.0, wait=lambda seconds: None) == 0.0
