"""What is foreseen of settings, against figures worked out by hand."""

from dataclasses import replace

import pytest

from lighten.search.choose import MOST, Setting, Tried
from lighten.search.foresight import Foresight
from lighten.search.needs import Needs

ORIGINAL = {"macs": 1000.0, "parameters": 200.0, "bytes": 900.0, "latency_ms": 2.0}
AT_ONCE = {"macs": 1000.0, "parameters": 200.0, "bytes": 300.0, "latency_ms": 1.0}
LOOK = {
    "groups": [{"name": "a", "curve": [[0, 0], [0.5, 1.0], [1.0, 4.0]]}, {"name": "b", "curve": [[0, 0], [1.0, 0.1]]}],
    "layers": [],
    "latency": [{"amount": 0.0, "bits": 32, "ms": 2.0}, {"amount": 0.6, "bits": 32, "ms": 1.0},
                {"amount": 0.0, "bits": 8, "ms": 1.0}, {"amount": 0.6, "bits": 8, "ms": 0.5}],
    "foreseen": [
        {"target": "macs", "amount": 0.3, "macs": 0.7, "parameters": 0.9, "shares": {"a": 0.0, "b": 0.6}},
        {"target": "macs", "amount": 0.6, "macs": 0.4, "parameters": 0.5, "shares": {"a": 0.5, "b": 0.8}},
    ],
}  # fmt: skip
BASE = Setting(epochs=3.0)


def test_figures_follow_what_each_strength_leaves():
    foresight = Foresight(LOOK, ORIGINAL, AT_ONCE)
    found = foresight.figures(replace(BASE, amount=0.45))
    assert found["macs"] == pytest.approx(550)
    assert found["parameters"] == pytest.approx(140)
    assert found["bytes"] == pytest.approx(210)
    assert foresight.figures(BASE)["latency_ms"] == pytest.approx(1.0, rel=0.02)
    assert foresight.figures(replace(BASE, amount=0.6))["latency_ms"] == pytest.approx(0.5, rel=0.02)


def test_weakest_is_the_least_that_meets_a_target():
    foresight = Foresight(LOOK, ORIGINAL, AT_ONCE)
    assert foresight.weakest(BASE, Needs(macs=400)) == pytest.approx(0.6, abs=0.011)
    assert foresight.weakest(BASE, Needs(parameters=100)) == pytest.approx(0.6, abs=0.011)
    assert foresight.weakest(BASE, Needs(bytes=299)) == pytest.approx(0.0, abs=0.011)
    assert foresight.weakest(BASE, Needs(parameters=1)) == MOST
    assert 0.2 < foresight.weakest(BASE, Needs(latency_ms=0.75)) < 0.4


def test_strongest_grows_with_what_is_allowed_and_learns_from_trials():
    foresight = Foresight(LOOK, ORIGINAL, AT_ONCE)
    amounts = [foresight.strongest(BASE, drop) for drop in (0.001, 0.01, 0.05)]
    assert amounts == sorted(amounts)
    setting = replace(BASE, amount=0.5)
    tried = [Tried(1, setting, 0.3, {**AT_ONCE, "latency_ms": 0.6})]
    worse = Foresight(LOOK, ORIGINAL, AT_ONCE, tried, {1: 0.25})
    assert worse.drop(setting) > 3 * foresight.drop(setting)
    assert worse.strongest(BASE, 0.01) < foresight.strongest(BASE, 0.01)


def test_a_network_that_cannot_be_pruned_is_foreseen_as_it_is():
    foresight = Foresight({**LOOK, "groups": [], "foreseen": [], "latency": []}, ORIGINAL, None)
    assert foresight.figures(BASE)["bytes"] == 900
    assert foresight.predicted(BASE)["latency_ms"] is None
