"""The steps of a search, with trials that take no time: which are tried, and when it ends."""

from types import SimpleNamespace

import pytest
from search_nets import Blobs
from torch import nn

from lighten import UserError
from lighten.search import steps
from lighten.search.confirm import Confirmation
from lighten.search.frontier import Point
from lighten.search.needs import Budget, Needs
from lighten.search.splits import splits_of
from lighten.search.steps import Search
from lighten.search.storage import Storage

LOOK = {
    "kind": "convolutional", "align": 1, "prunable": True, "why_not": None, "layers": [], "exclude": [], "latency": [],
    "groups": [{"name": "a", "norms_rank_well": True, "curve": [[0, 0], [1, 1]]}], "foreseen": [], "frozen": {},
    "steps_per_epoch": 100, "seconds_per_epoch": 0.001, "seconds": 0.0,
}  # fmt: skip


class Tries:
    """Each trial loses what ``drop`` says of its amount."""

    def __init__(self, drop):
        self.drop, self.fails = drop, set()

    def tried(self, row, needs, *, left):
        setting, number = row["setting"], row["number"]
        if number in self.fails:
            return {"state": "failed", "dropped": "it cannot be", "epochs": 0.0, "seconds": 0.0}
        drop, kept = self.drop(setting["amount"]), 1 - setting["amount"]
        figures = {"latency_ms": kept, "bytes": kept * 100, "macs": kept, "parameters": kept * 100}
        measured = {"metric": 1 - drop, "drop": drop, "expected": drop, "bound": drop, **figures}
        stages = {"fit": 0.0, "export": 0.0, "measure": 0.0}
        done = {"state": "complete", "dropped": None, "epochs": setting["epochs"], "seconds": 0.0}
        return {**done, "measured": measured, "stages": stages}


@pytest.fixture
def search(tmp_path, monkeypatch):
    figures = {"latency_ms": 2.0, "bytes": 400, "macs": 1.0, "parameters": 100, "metric": 1.0, "guide": 1.0}
    quality = SimpleNamespace(
        metric="accuracy", lower_is_better=False, original=lambda *_: figures,
        confirm=lambda *_: Confirmation(0.0, 0.005, 200, 0.95, "any"),
    )  # fmt: skip
    subject = SimpleNamespace(network=nn.Conv2d(1, 1, 1), task=None, about={})
    monkeypatch.setattr(steps, "save", lambda *_, **__: None)
    monkeypatch.setattr(steps, "export_files", lambda *_, **__: None)
    look, told = dict(LOOK), []
    monkeypatch.setattr(steps, "look_at", lambda *_, **__: dict(look))
    monkeypatch.setattr(steps, "keep", lambda folder, chosen: None)
    monkeypatch.setattr(Search, "_result", lambda self: self.state)
    tries = Tries(lambda amount: 0.0 if amount <= 0.6 else 0.5)
    monkeypatch.setattr(Search, "_tries", tries)

    def run(needs, budget=Budget(epochs=40), folder=tmp_path):  # noqa: B008
        data = Blobs()
        found = Search(subject, quality, data, splits_of(data), needs, budget, seed=0, trainer={}, tell=told.append)
        with Storage(folder, {}) as storage:
            return found.run(storage)

    return SimpleNamespace(run=run, tries=tries, look=look, told=told, quality=quality)


def test_strength_is_bracketed_and_the_best_that_holds_is_chosen(search):
    state = search.run(Needs(max_drop=0.01), Budget(epochs=1000))
    amounts = [row["setting"]["amount"] for row in state["trials"]]
    assert amounts[0] == 0
    best = max(amount for amount in amounts if amount <= 0.6)
    assert 0.5 < best <= 0.6
    assert state["trials"][state["chosen"]]["setting"]["amount"] == best
    assert state["state"] == "met"
    assert state["trials"][0]["setting"]["quantize"] == "static"


def test_epochs_of_all_trials_are_within_the_budget(search):
    state = search.run(Needs(max_drop=0.01), Budget(epochs=3))
    assert 0 < sum(row["epochs"] for row in state["trials"]) <= 3
    assert state["plan"][-1] == "the budget is used up"


def test_failures_are_told_and_end_the_fine_tunes(search):
    search.tries.fails = {1, 2}
    state = search.run(Needs(max_drop=0.01))
    assert [row["state"] for row in state["trials"]] == ["complete", "failed", "failed"]
    assert state["chosen"] == 0


@pytest.mark.parametrize(
    ("kind", "ways"),
    [("dense", ["static", "dynamic", "static", "qat"]), ("convolutional", ["static", "static", "qat"])],
)
def test_what_is_not_good_enough_after_training_is_tried_another_way(search, monkeypatch, kind, ways):
    monkeypatch.setattr(steps, "kind_of", lambda network: kind)
    monkeypatch.setattr(steps, "look_at", lambda *_, **__: {**LOOK, "kind": kind, "exclude": ["head"]})
    search.tries.drop = lambda amount: 0.5
    rows = search.run(Needs(max_drop=0.01))["trials"]
    assert [row["setting"]["quantize"] for row in rows][: len(ways)] == ways
    assert [bool(row["setting"]["exclude"]) for row in rows] == [i == len(ways) - 2 for i in range(len(rows))]


def test_a_search_of_which_nothing_remains_says_why(search):
    search.tries.fails = {0, 1, 2}
    with pytest.raises(UserError, match=r"no trial came to an end .trial 0: it cannot be; trial 1"):
        search.run(Needs(max_drop=0.01))


def test_needs_that_are_shares_are_of_the_original(search):
    state = search.run(Needs(relative={"bytes": 0.125}))
    assert state["needs"]["bytes"] == 50
    chosen = state["trials"][state["chosen"]]
    assert chosen["measured"]["bytes"] <= 50


def test_confirmation_decides_and_is_not_chosen_by(search, monkeypatch):
    search.tries.drop = lambda amount: 0.0
    chosen = []
    monkeypatch.setattr(steps, "keep", lambda folder, point: chosen.append(point))
    state = search.run(Needs(max_drop=0.004))
    assert state["state"] == "not met"
    assert state["nearest"].startswith(f"not met; the nearest is trial {state['chosen']}")
    assert isinstance(chosen[-1], Point)
    assert chosen[-1].trial == state["chosen"]


def test_a_bound_is_not_called_a_drop(search):
    search.quality.confirm = lambda *_: Confirmation(0.0, 0.066, 65, 0.95, "any")
    state = search.run(Needs(max_drop=0.05))
    assert state["nearest"].endswith(": drop 0 % and its 95% bound 6.6 %, need at most 5 %")


def test_a_budget_that_leaves_no_fine_tune_is_told(search):
    search.look["steps_per_epoch"] = 1
    state = search.run(Needs(max_drop=0.01), Budget(epochs=1))
    assert [row["epochs"] for row in state["trials"]] == [0]
    line = "the budget leaves no time for a fine-tune, which takes 5 epochs of 1 steps: give more"
    assert state["plan"][-1] == line
    assert line in search.told
