import json
from dataclasses import asdict

import pytest

from lighten.errors import UserError
from lighten.search.needs import Budget, Needs, budget_of, needs_of

ORIGINAL = {"latency_ms": 4.0, "bytes": 1_000_000, "macs": 4e7, "parameters": 270_000}


def refused(match, *args, **kwargs):
    with pytest.raises(UserError, match=match) as caught:
        needs_of(*args, **kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [0.01, "1%", "1 %", "0.01", "1e-2"])
def test_a_share_and_a_percentage_are_the_same(given):
    assert needs_of(given).max_drop == pytest.approx(0.01)


def test_one_point_where_nothing_is_said():
    assert needs_of() == Needs(max_drop=0.01)
    assert needs_of(target={"bytes": 1000}).max_drop is None


def test_targets_are_read_in_one_unit_each():
    needs = needs_of(
        0.02, {"latency_ms": "1500 us", "bytes": "0.5 MB", "macs": "20M", "parameters": "100 k", "threads": 2}
    )
    assert (needs.latency_ms, needs.bytes, needs.macs, needs.parameters) == (1.5, 500_000, 2e7, 100_000)
    assert (needs.batch, needs.threads, needs.runtime) == (1, 2, "onnx")


def test_percentages_become_absolute_with_the_original():
    needs = needs_of(target={"latency_ms": "50%", "bytes": "25 %"})
    assert needs.relative == {"latency_ms": 0.5, "bytes": 0.25}
    found = needs.resolved(ORIGINAL)
    assert (found.latency_ms, found.bytes, found.relative) == (2.0, 250_000, {})
    assert json.loads(json.dumps(asdict(found)))["latency_ms"] == 2.0


def test_a_target_that_the_original_meets_is_refused_unless_another_is_not():
    with pytest.raises(UserError, match=r"the original meets it already: file 1 MB where file 2 MB is asked"):
        needs_of(target={"bytes": "2 MB"}).resolved(ORIGINAL)
    assert needs_of(target={"bytes": "2 MB", "latency_ms": 1}).resolved(ORIGINAL).bytes == 2_000_000
    with pytest.raises(UserError, match="whose macs is not known"):
        needs_of(target={"macs": "50%"}).resolved({"bytes": 10})


def test_what_is_broken_is_said_and_nothing_where_all_is_met():
    needs = needs_of(0.01, {"latency_ms": 2, "bytes": 1000, "macs": 5})
    assert needs.met_by({"latency_ms": 2.0, "bytes": 1000, "macs": 5}, 0.01) == []
    assert needs.met_by({"latency_ms": 2.4, "bytes": 1001}, 0.018) == [
        "drop 1.8 %, need at most 1 %",
        "latency 2.4 ms, need at most latency 2 ms (onnx, batch 1, 1 thread)",
        "file 1 kB, need at most file 1 kB",
        "macs not measured, need at most 5 MACs",
    ]
    assert needs_of().met_by({}, float("nan")) == ["drop nan %, need at most 1 %"]


def test_needs_read_as_a_sentence():
    assert str(needs_of("1%", {"latency_ms": 2, "bytes": "50%"})) == (
        "drop at most 1 %, latency 2 ms at most, bytes at most 50 % of the original's (onnx, batch 1, 1 thread)"
    )


@pytest.mark.parametrize(
    ("drop", "target", "match"),
    [
        (1, None, "max_drop=1: expected a share from 0 to below 1.*did you mean '1%'"),
        (-0.1, None, "max_drop=-0.1: expected a share"),
        (float("nan"), None, "expected a number"),
        (True, None, "expected a number"),
        ("a lot", None, "cannot be read"),
        ("100%", None, "expected a share from 0 to below 1"),
        ("3 MB", None, "expected a share, as"),
        (None, {"latency": 2}, "did you mean 'latency_ms'"),
        (None, 5, "expected limits by name"),
        (None, {"bytes": 0}, "cannot be met, expected more than zero"),
        (None, {"latency_ms": -1}, "cannot be met, expected more than zero"),
        (None, {"bytes": 0.4}, "cannot be met, expected 1 or more"),
        (None, {"bytes": "100%"}, "the original has 100 %"),
        (None, {"bytes": "5 XB"}, "unit 'xb'"),
        (None, {"macs": [1]}, "expected a number"),
        (None, {"batch": 1}, "batch without latency_ms has no effect"),
        (0.01, {"bytes": 5, "threads": 1, "runtime": "onnx"}, "threads, runtime without latency_ms has no effect"),
        (None, {"latency_ms": 1, "threads": 0}, "target threads=0: expected a whole number"),
        (None, {"latency_ms": 1, "runtime": "onxx"}, "did you mean 'onnx'"),
    ],
)
def test_bad_needs_are_one_line(drop, target, match):
    refused(match, drop, target)


@pytest.mark.parametrize(
    ("given", "budget"),
    [
        (None, Budget()),
        ("20 min", Budget(seconds=1200)),
        ("20min", Budget(seconds=1200)),
        ("90s", Budget(seconds=90)),
        ("2 h", Budget(seconds=7200)),
        ("1.5 hours", Budget(seconds=5400)),
        ("1 h 30 min", Budget(seconds=5400)),
        ("12 epochs", Budget(epochs=12)),
        ("1 epoch", Budget(epochs=1)),
        (20, Budget(seconds=1200)),
        (0.5, Budget(seconds=30)),
        ("15", Budget(seconds=900)),
    ],
)
def test_budgets(given, budget):
    assert budget_of(given) == budget


@pytest.mark.parametrize(
    "given", ["soon", "", "20 parsecs", "-3 min", "nan min", "inf h", "1 h 30", True, [3], "5 min 3 epochs", 0, "0 s"]
)
def test_bad_budgets_are_one_line(given):
    with pytest.raises(UserError, match=r"^budget=") as caught:
        budget_of(given)
    assert "\n" not in str(caught.value)
