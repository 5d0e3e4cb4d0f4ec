"""The next setting, on made-up networks whose drop is a known function of the amount."""

import math
from types import SimpleNamespace

import pytest

from lighten.search.choose import (
    MOST,
    NEAR,
    Setting,
    Tried,
    after_training,
    aim_of,
    align_of,
    base_setting,
    next_setting,
    sentences,
    towards,
    warm_from,
)  # fmt: skip
from lighten.search.needs import Needs

BASE = Setting(epochs=4.0)
LOOK = {
    "align": 8, "kind": "convolutional", "prunable": True, "why_not": None, "layers": [{"name": "conv1", "drop": 0.1}],
    "groups": [
        {"name": "a", "norms_rank_well": True, "curve": [[0, 0], [0.5, 0.1]]},
        {"name": "b", "norms_rank_well": False, "curve": [[0, 0], [0.5, 3.0]]},
    ],
}  # fmt: skip


def tried(number, amount, drop, macs=None):
    macs = 1 - amount if macs is None else macs
    return Tried(number, Setting(amount=amount, epochs=4.0), drop, {"macs": macs, "latency_ms": macs, "bytes": macs})


def search(drop, needs, *, aim=lambda done: 0.5, most=30):
    """Return what is tried of a network that loses ``drop(amount)``."""
    done = []
    for number in range(most):
        found = next_setting(BASE, done, needs, aim=aim(done), why="foreseen", again=2.0, prunable=True)
        if found is None:
            break
        done.append(tried(number, found.setting.amount, drop(found.setting.amount)))
    return done


@pytest.mark.parametrize("limit", [0.05, 0.3, 0.62, 0.9])
@pytest.mark.parametrize("aim", [0.1, 0.5, 0.94])
def test_the_strongest_amount_that_is_allowed_is_bracketed(limit, aim):
    needs = Needs(max_drop=0.01)
    done = search(lambda amount: 0.0 if amount <= limit else 0.1, needs, aim=lambda _: aim)
    good = max((one.setting.amount for one in done if one.drop <= 0.01), default=0.0)
    bad = min((one.setting.amount for one in done if one.drop > 0.01), default=1.0)
    assert good <= limit
    assert bad == 1.0 or math.log((1 - good) / (1 - bad)) < NEAR + 0.01
    assert good > MOST - 0.02 or bad < 1.0
    assert len(done) <= 9


def test_right_predictions_close_the_bracket_sooner():
    needs, drop = Needs(max_drop=0.01), lambda amount: amount / 50
    blind = search(drop, needs, aim=lambda _: 0.0)
    told = search(drop, needs, aim=lambda done: 0.49 if len(done) < 1 else 0.52)
    assert len(told) < len(blind)


def test_a_target_is_met_by_the_least_amount_where_no_drop_is_said():
    done = search(lambda amount: amount, Needs(macs=0.5))
    met = min(one.setting.amount for one in done if one.figures["macs"] <= 0.5)
    assert met == pytest.approx(0.5, abs=0.08)


def test_a_target_and_a_drop_end_the_search_when_both_are_met():
    done = search(lambda amount: 0.0, Needs(macs=0.5, max_drop=0.01), aim=lambda _: 0.55)
    assert [one.setting.amount for one in done] == [0.55]


@pytest.mark.parametrize(
    ("needs", "figures", "drop", "way"),
    [
        (Needs(max_drop=0.01), {"macs": 1}, 0.0, 1),
        (Needs(max_drop=0.01), {"macs": 1}, 0.02, -1),
        (Needs(max_drop=0.01), {}, math.inf, -1),
        (Needs(macs=5), {"macs": 6}, 0.5, 1),
        (Needs(macs=5), {"macs": 4}, 0.5, -1),
        (Needs(macs=5), {"macs": 4.8}, 0.5, 0),
        (Needs(macs=5, max_drop=0.01), {"macs": 4}, 0.0, 0),
        (Needs(macs=5, max_drop=0.01), {"macs": 6}, 0.5, 1),
    ],
)
def test_towards(needs, figures, drop, way):
    assert towards(needs, figures, drop) == way


def test_what_just_misses_is_trained_on_once():
    needs = Needs(max_drop=0.01)
    done = [tried(1, 0.5, 0.0), tried(2, 0.53, 0.02)]
    found = next_setting(BASE, done, needs, aim=0.5, why="", again=2.0, prunable=True)
    assert (found.setting.amount, found.warm_from, found.setting.epochs) == (0.53, 2, 2.0)
    healed = [*done, tried(3, 0.53, 0.005)]
    stronger = next_setting(BASE, healed, needs, aim=0.5, why="", again=2.0, prunable=True)
    assert (stronger.setting.amount > 0.53, stronger.warm_from) == (True, 3)
    same = [*done, tried(3, 0.53, 0.02)]
    assert next_setting(BASE, same, needs, aim=0.5, why="", again=2.0, prunable=True) is None
    far = [done[0], tried(2, 0.53, 0.5)]
    assert next_setting(BASE, far, needs, aim=0.5, why="", again=2.0, prunable=True) is None


def test_what_meets_a_target_closely_is_trained_on_instead_of_pruned_less():
    needs = Needs(macs=0.5)
    found = next_setting(BASE, [tried(1, 0.51, 0.2)], needs, aim=0.5, why="", again=2.0, prunable=True)
    assert (found.setting.amount, found.warm_from) == (0.51, 1)


def test_each_begins_with_the_strongest_that_pruned_less():
    done = [tried(1, 0.3, 0.0), tried(2, 0.7, 0.5), Tried(3, Setting(amount=0.4), math.inf, {})]
    assert warm_from(done, 0.5) == 1
    assert warm_from(done, 0.8) == 2
    assert warm_from(done, 0.2) is None


def test_what_cannot_be_pruned_is_trained_once():
    found = next_setting(BASE, [], Needs(max_drop=0.1), aim=0.5, why="", again=1.0, prunable=False)
    assert found.setting.amount == 0.0
    done = [tried(0, 0.0, 0.0)]
    assert next_setting(BASE, done, Needs(max_drop=0.1), aim=0.5, why="", again=1.0, prunable=False) is None


def test_after_training():
    first = after_training("convolutional", [], None)
    assert first.setting.quantize == "static"
    assert after_training("convolutional", [first.setting], None) is None
    second = after_training("transformer", [first.setting], None)
    assert second.setting.quantize == "dynamic"
    assert after_training("transformer", [first.setting, second.setting], None) is None
    third = after_training("transformer", [first.setting, second.setting], ["head"])
    assert (third.setting.quantize, third.setting.exclude) == ("static", ("head",))
    assert after_training("transformer", [first.setting, second.setting, third.setting], ["head"]) is None


def test_base_setting_follows_kind_and_needs():
    assert base_setting(LOOK, Needs(max_drop=0.1), distil=True).target == "macs"
    assert base_setting(LOOK, Needs(bytes=5), distil=True).target == "parameters"
    slow = base_setting({**LOOK, "kind": "transformer"}, Needs(max_drop=0.1), distil=False)
    assert (slow.lr, slow.exclude, slow.distil) == (1e-4, (), False)


@pytest.mark.parametrize(
    ("kind", "widths", "align"),
    [
        ("convolutional", [16, 16, 32, 64], 8), ("convolutional", [64, 64, 128], 16), ("convolutional", [8, 12], 1),
        ("dense", [512], 1), ("convolutional", [], 1),
    ],
)  # fmt: skip
def test_widths_of_convolutions_are_aligned(kind, widths, align):
    assert align_of(kind, widths) == align


def test_setting_survives_json():
    setting = Setting(amount=0.3, exclude=("a", "b"))
    assert Setting.from_json(setting.as_json()) == setting


def test_sentences_name_what_was_found():
    text = " ".join(sentences(LOOK, BASE, 0.4, why="foreseen"))
    for words in (
        "convolutional",
        "norms rank the channels of 1 of 2 groups well",
        "b and a lose least",
        "40 % of the macs",
        "conv1 loses most accuracy",
    ):
        assert words in text
    nothing = {**LOOK, "prunable": False, "groups": [], "why_not": "no layers"}
    assert "nothing is pruned: no layers" in sentences(nothing, BASE, 0.0, why="")


def test_aim_is_the_least_for_a_target_and_the_most_for_a_drop():
    foresight = SimpleNamespace(weakest=lambda base, needs: 0.3, strongest=lambda base, drop: 0.6)
    assert aim_of(foresight, BASE, Needs(macs=5, max_drop=0.1))[0] == 0.3
    assert aim_of(foresight, BASE, Needs(max_drop=0.1))[0] == 0.6
