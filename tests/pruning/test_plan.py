import dataclasses
import hashlib
import json

import pytest

from lighten.errors import UserError
from lighten.pruning import Plan, plan_pruning
from lighten.pruning.plan import Cut, GroupPlan, Slot


@pytest.fixture
def plan(build, images):
    return plan_pruning(build("residual-pad"), images, 0.5)


def test_json_brings_back_an_equal_plan(plan):
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.hash == plan.hash


def test_json_is_one_object_of_plain_values(plan):
    data = json.loads(plan.to_json())
    assert data["schema"] == 2
    assert data["hash"] == plan.hash
    assert data["example"]["args"] == [{"shape": [2, 3, 8, 8], "dtype": "float32"}]


def test_hash_is_of_what_is_cut_alone():
    slots = (Slot("a.weight", 0, "filter"), Slot("b.weight", 1, "input"))
    base = Plan((GroupPlan("a", ("a",), (1,), (0.1, 0.2)),), (Cut(2, (0,), slots),), {}, {}, {}, {})
    rescored = dataclasses.replace(base, groups=(GroupPlan("a", ("a",), (1,), (0.3, 0.4)),))
    reordered = dataclasses.replace(base, cuts=tuple(Cut(2, (0,), (slot,)) for slot in reversed(slots)))
    other = dataclasses.replace(base, cuts=(Cut(2, (1,), slots),))
    assert base.hash == rescored.hash == reordered.hash != other.hash
    assert base.hash == hashlib.sha256(b"a.weight 0 2 [0]\nb.weight 1 2 [0]").hexdigest()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda d: d["cuts"][0]["removed"].pop(), "do not match its hash"),
        (lambda d: d.update(schema=99), "has schema 99, expected 2"),
        (lambda d: d.pop("groups"), "this is no pruning plan"),
    ],
    ids=["damaged", "newer", "incomplete"],
)
def test_refuses_what_it_cannot_trust(plan, spoil, says):
    data = json.loads(plan.to_json())
    spoil(data)
    with pytest.raises(UserError, match=says):
        Plan.from_json(json.dumps(data))


def test_refuses_what_is_no_json():
    with pytest.raises(UserError, match="this is no pruning plan"):
        Plan.from_json("a plan")


def test_table_names_groups_ties_widths_scores_and_what_is_left_alone(plan):
    text = str(plan)
    stem = next(line for line in text.splitlines() if " stem.0 " in line)
    assert "a2.0, b2.0" in stem
    assert "8 -> 4" in stem
    assert f"{min(plan.groups[0].scores):.3g} to" in stem
    assert "head: is the network's output" in text
    assert "b2.0: 8 of 16 channels: is tied to channels that pad adds" in " ".join(text.split())
    assert (
        "50.0% of 32 channels, 69.3% of MACs, 66.6% of parameters, fpgm, uniform; asked for: 50.0% of channels"
        in " ".join(text.split())
    )


def test_rows_and_widths_agree(plan):
    rows = {row.name: (row.width_before, row.width_after) for row in plan.groups}
    assert rows == {"stem.0": (8, 4), "a1.0": (8, 4), "b1.0": (16, 8)}
    assert plan.widths["stem.0"] == (8, 4)
    assert plan.widths["b2.0"] == (16, 12)
    assert plan.widths["head"] == (5, 5)
    assert plan.sparsity == 0.5
    assert sorted(plan.groups[0].kept + plan.groups[0].removed) == list(range(8))
