import gc

import numpy as np
import pytest
import torch

from lighten.delivery.measure import latency
from lighten.delivery.measure.latency import WARM_UP, batch_of, interleaved_latency


class Fake:
    """A model whose calls take as long as it says, on a clock that stands still otherwise."""

    def __init__(self, name, clock, calls, durations):
        self.name, self.clock, self.calls, self.durations = name, clock, calls, durations
        self.done, self.collected = 0, []

    def feed(self, call):
        return call

    def run(self, feed):
        self.calls.append(self.name)
        self.collected.append(gc.isenabled())
        if self.done >= WARM_UP:
            self.clock[0] += self.durations[(self.done - WARM_UP) % len(self.durations)]
        self.done += 1


@pytest.fixture
def clock(monkeypatch):
    now = [0]
    monkeypatch.setattr(latency.time, "perf_counter_ns", lambda: now[0])
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0] / 1e9)
    return now


def test_models_take_turns_and_every_other_round_runs_backwards(clock):
    calls = []
    runners = {name: Fake(name, clock, calls, [1_000_000]) for name in "abc"}
    interleaved_latency(runners, {"batch_1": ((), {})}, seconds=0, min_rounds=4)
    assert "".join(calls[3 * WARM_UP :]) == "abccbaabccba"
    assert all(runner.collected == [True] * WARM_UP + [False] * 4 for runner in runners.values())
    assert gc.isenabled()


def test_median_and_ninetieth_percentile_are_numpys_in_milliseconds(clock):
    durations = [3_000_000, 1_000_000, 2_000_000, 9_000_000, 4_000_000, 5_000_000, 6_000_000]
    runners = {"one": Fake("one", clock, [], durations)}
    found = interleaved_latency(runners, {"batch_8": ((), {})}, seconds=0, min_rounds=7)["one"]["batch_8"]
    assert found == {"median": pytest.approx(4.0), "p90": pytest.approx(np.percentile([3, 1, 2, 9, 4, 5, 6], 90))}


def test_it_ends_by_the_clock_and_by_rounds(clock):
    calls = []
    fake = Fake("one", clock, calls, [100_000_000])
    interleaved_latency({"one": fake}, {"batch_1": ((), {})}, seconds=1.0, min_rounds=2)
    assert len(calls) == WARM_UP + 10
    interleaved_latency({"one": fake}, {"batch_1": ((), {})}, seconds=1e9, max_rounds=5)
    assert len(calls) == 2 * WARM_UP + 10 + 5


def test_batches_are_the_first_samples_repeated_where_there_are_fewer():
    x = torch.arange(3.0).view(3, 1)
    (args, kwargs) = batch_of(((x,), {"mask": x, "scale": torch.tensor(2.0)}), 5)
    assert args[0].flatten().tolist() == kwargs["mask"].flatten().tolist() == [0, 1, 2, 0, 1]
    assert kwargs["scale"].ndim == 0
    assert batch_of(((x,), {}), 1)[0][0].shape == (1, 1)


def test_the_share_that_is_done_is_told_once_a_second_and_never_while_a_model_runs(clock):
    calls, told = [], []
    runners = {name: Fake(name, clock, calls, [200_000_000]) for name in "ab"}
    batches = {"batch_1": ((), {}), "batch_32": ((), {})}

    def tell(share):
        told.append(round(share, 3))
        assert (len(calls) - WARM_UP * 2 * (1 + (share > 0.5))) % 2 == 0

    interleaved_latency(runners, batches, seconds=4.0, tell=tell)
    assert told == [0.15, 0.3, 0.45, 0.65, 0.8, 0.95]  # a round takes 0.4 s: after 1.2, 2.4 and 3.6 of 4 s
    interleaved_latency(runners, batches, seconds=0.0, tell=lambda share: pytest.fail("nothing to tell"))
