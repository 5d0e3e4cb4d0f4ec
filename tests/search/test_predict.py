import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import Ridge as TheirRidge

from lighten.search.predict import UNSEEN, DropModel, LatencyModel, Ridge, interpolated, monotone
from lighten.utils.ranks import spearman


@dataclass(frozen=True)
class Some:
    amount: float = 0.0
    quantize: str = "qat"
    exclude: tuple[str, ...] = ()
    epochs: float = 0.0


LOOK = [{"amount": a, "bits": b, "ms": ms} for b, scale in ((32, 4.0), (8, 1.5)) for a, ms in
        ((0.0, scale), (0.25, 0.8 * scale), (0.5, 0.55 * scale), (0.75, 0.3 * scale))]  # fmt: skip


@pytest.mark.parametrize("rising", [True, False])
def test_monotone_is_scikit_learns(rising):
    values = np.random.default_rng(0).normal(size=40).cumsum() * (1 if rising else -1)
    theirs = IsotonicRegression(increasing=rising).fit_transform(np.arange(40), values)
    assert monotone(values, rising=rising) == pytest.approx(theirs)


def test_ridge_is_scikit_learns():
    g = np.random.default_rng(1)
    x, y = g.normal(size=(12, 3)), g.normal(size=12)
    ours = Ridge([0.3, 0.3, 0.3])
    for row, value in zip(x, y, strict=True):
        ours.add(row, value)
    assert ours.weights == pytest.approx(TheirRidge(alpha=0.3, fit_intercept=False).fit(x, y).coef_)


def test_latency_is_the_looks_where_it_measured_and_between_elsewhere():
    model = LatencyModel(LOOK)
    for one in LOOK:
        settings = Some(one["amount"], "qat" if one["bits"] == 8 else "none")
        assert model.predict(settings) == pytest.approx(one["ms"])
    assert model.predict(Some(0.125)) == pytest.approx(1.5 * math.sqrt(0.8))
    assert LatencyModel([]).predict(Some()) is None


def test_latency_never_rises_with_the_amount():
    noisy = [one | {"ms": one["ms"] * f} for one, f in zip(LOOK, [1, 1.4, 0.9, 1.2] * 2, strict=True)]
    model = LatencyModel(noisy)
    for amount, ms in ((0.2, 1.0), (0.6, 1.5), (0.9, 2.0)):  # trials that say the contrary
        model.observe(Some(amount), ms)
    found = [model.predict(Some(a)) for a in np.linspace(0, 0.98, 99)]
    assert np.all(np.diff(found) <= 1e-9)


def test_layers_in_float_count_by_their_multiply_adds():
    model = LatencyModel(LOOK, macs={"a": 3.0, "b": 1.0})
    assert model.predict(Some(exclude=("b",))) == pytest.approx(0.75 * 1.5 + 0.25 * 4.0)
    assert model.predict(Some(exclude=("a", "b"))) == pytest.approx(4.0)
    assert model.predict(Some(exclude=("a", "b"), quantize="none")) == pytest.approx(4.0)


def test_measured_trials_correct_the_latency():
    def truth(amount):
        return 1.3 * 1.5 * (1 - 0.9 * amount)

    model = LatencyModel(LOOK)
    before = abs(model.predict(Some(0.6)) / truth(0.6) - 1)
    for amount in (0.0, 0.4, 0.5, 0.7):
        model.observe(Some(amount), truth(amount))
    errors = [abs(model.predict(Some(a)) / truth(a) - 1) for a in (0.2, 0.45, 0.6, 0.8)]
    assert before > 0.15
    assert np.median(errors) < 0.1


def test_without_a_look_the_first_trial_is_what_is_known():
    model = LatencyModel([])
    model.observe(Some(0.5), 2.0)
    assert model.predict(Some(0.5)) == pytest.approx(2.0)
    assert model.predict(Some(0.5, "none")) == pytest.approx(4.0)
    model.observe(Some(0.5), math.nan)
    assert model.predict(Some(0.5)) == pytest.approx(2.0)


GROUPS = [
    {"name": "a", "curve": [[0.25, 0.02], [0.5, 0.1], [0.75, 0.4]]},
    {"name": "b", "curve": [[0.25, 0.0], [0.5, 0.02], [0.75, 0.06]]},
    {"name": "frozen", "curve": []},
]
LAYERS = [{"name": "first", "drop": 0.01}, {"name": "last", "drop": 0.004}, {"name": "odd", "drop": -0.002}]


def test_damage_adds_up_groups_and_layers():
    model = DropModel(GROUPS, LAYERS)
    assert model.damage(Some(0.5, "none")) == pytest.approx(0.12)
    assert model.damage(Some(0.125)) == pytest.approx(0.01 + 0.014)
    assert model.damage(Some(exclude=("first",))) == pytest.approx(0.004)
    assert DropModel(GROUPS, shares=lambda s: {"a": 0.0, "b": s.amount}).damage(Some(0.5)) == pytest.approx(0.02)
    assert DropModel(GROUPS[:1]).damage(Some(0.875)) == pytest.approx(0.4 + 0.15)  # the last piece goes on


def test_before_anything_is_measured_training_divides_the_damage():
    model = DropModel(GROUPS)
    assert model.predict(Some(0.5)) == pytest.approx(0.12)
    assert model.predict(Some(0.5, epochs=9)) == pytest.approx((0.12 + UNSEEN) / 10 - UNSEEN)
    assert model.predict(Some()) == pytest.approx(0)


def test_drops_rank_and_come_nearer_with_what_is_measured():
    g = np.random.default_rng(0)
    model = DropModel(GROUPS, LAYERS)

    def truth(settings):
        return 0.5 * model.damage(settings) ** 1.4 * (1 + settings.epochs) ** -0.4

    tried = [Some(a, epochs=e) for a in (0.3, 0.5, 0.7, 0.8) for e in (2, 5)]
    for settings in tried:
        model.observe(settings, truth(settings) * math.exp(0.15 * g.normal()))
    others = [Some(a, epochs=e) for a in (0.2, 0.4, 0.6, 0.75) for e in (3, 8)]
    predicted, real = [[f(s) for s in others] for f in (model.predict, truth)]
    assert spearman(predicted, real) > 0.9
    prior = DropModel(GROUPS, LAYERS)
    errors = [np.abs(np.subtract([m.predict(s) for s in others], real)).mean() for m in (prior, model)]
    assert errors[1] < errors[0] / 2


def test_more_damage_never_predicts_less_whatever_is_measured():
    model = DropModel(GROUPS)
    for amount, drop in ((0.2, 0.05), (0.5, 0.01), (0.8, -0.01), (0.6, math.nan)):
        model.observe(Some(amount, epochs=3), drop)
    found = [model.predict(Some(a, epochs=3)) for a in np.linspace(0, 0.98, 40)]
    assert np.all(np.diff(found) >= -1e-12)
    assert model.predict(Some(0.5, epochs=10)) <= model.predict(Some(0.5, epochs=3))


def test_the_strongest_that_is_allowed():
    model = DropModel(GROUPS)
    amount = model.strongest(Some(epochs=4), 0.01)
    assert model.predict(Some(amount, epochs=4)) <= 0.01 < model.predict(Some(amount + 0.02, epochs=4))
    assert model.strongest(replace(Some(), quantize="none"), -1.0) == 0.0


def test_a_curve_of_one_point_is_flat():
    assert interpolated(np.array([0.3]), np.array([2.0]), 0.9) == 2.0
