"""Observers against the values that they saw, rules of ranges against their definitions."""

import math

import pytest
import torch
from quantization_nets import Residual, lived_in
from torch import nn

from lighten.errors import UserError
from lighten.quantization import calibrate_, quantize_
from lighten.quantization.activation_quantizers import quantizers_of
from lighten.quantization.histogram import histogram
from lighten.quantization.observe import RULES, Observer, rule_of
from lighten.quantization.post_training import quantize_post_training
from lighten.quantization.settings import RANGES


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(8, 1, 8, 8, generator=generator), torch.zeros(8)) for _ in range(3)]


def test_moving_average_and_extremes_follow_their_definitions(batches):
    average, extremes = (quantize_(nn.Linear(4, 2), example_input=torch.zeros(2, 4)) for _ in range(2))
    data = [torch.randn(16, 4) for _ in range(4)]
    calibrate_(average, data)
    calibrate_(extremes, data, ranges="min_max")
    low = data[0].min()
    for x in data[1:]:
        low = low + 0.05 * (x.min() - low)
    torch.testing.assert_close(quantizers_of(average).low[0], low)
    assert quantizers_of(extremes).high[0] == torch.cat(data).max()


@pytest.mark.parametrize("ranges", ["min_max", "percentile", "mse", "entropy", "lsq"])
def test_histograms_gather_all_batches_before_they_decide(batches, ranges):
    model, together = lived_in(Residual()), [torch.cat([x for x, _ in batches])]
    one, three = (quantize_post_training(model, data, ranges=ranges) for data in (together, batches))
    torch.testing.assert_close(quantizers_of(one).low, quantizers_of(three).low, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(quantizers_of(one).high, quantizers_of(three).high, rtol=1e-3, atol=1e-3)
    first = quantize_post_training(model, batches[:1], ranges=ranges)
    assert not torch.allclose(quantizers_of(one).high, quantizers_of(first).high, rtol=1e-3, atol=1e-3)


def extremes(observer, untrained=(), when=""):
    return observer.reduced_extremes(untrained, when, torch.device("cpu")).tolist()


@pytest.mark.parametrize("relu", [False, True])
def test_extremes_are_those_of_all_batches_until_they_are_asked_for(relu):
    observer, batches = Observer(["a", "b"]), [torch.randn(5) - 1, torch.randn(2, 3) + 1]
    for x in batches:
        observer.observe(1, x, relu=relu, with_histogram=False)
    observer.observe(0, torch.empty(0, 3), relu=relu, with_histogram=False)
    values = [max(value, 0.0) if relu else value for x in batches for value in x.flatten().tolist()]
    nothing = [-math.inf, -math.inf, -1]
    assert extremes(observer) == [nothing, [-min(values), max(values), -1]]
    assert extremes(observer) == [nothing, nothing]


@pytest.mark.parametrize(("untrained", "skipped"), [((), [0, -1, -1, -1]), (("b",), [0, 0, 0, -1])])
def test_locations_behind_one_that_a_step_skipped_are_marked(untrained, skipped):
    observer = Observer(["a", "b", "c", "d"])
    for index in (0, 2):
        observer.observe(index, torch.ones(3), relu=False, with_histogram=False)
    assert [row[2] for row in extremes(observer, untrained)] == skipped


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named_by_its_location(value):
    observer = Observer(["a", "b"])
    observer.observe(0, torch.ones(3), relu=False, with_histogram=False)
    observer.observe(1, torch.tensor([1.0, value]), relu=False, with_histogram=False)
    with pytest.raises(UserError, match=r"^quantize: activations at 'b' are not finite at step 3; lower"):
        extremes(observer, when=" at step 3")


@pytest.mark.parametrize("relu", [False, True])
def test_a_histogram_is_that_of_all_batches_in_one(relu):
    observer, batches = Observer(["a", "b"]), [torch.randn(500), 3 * torch.randn(20, 5)]
    for x in batches:
        observer.observe(1, x, relu=relu, with_histogram=True)
    whole = torch.cat([x.flatten() for x in batches])
    expected = histogram(whole.relu() if relu else whole)
    low, high = torch.tensor([math.inf, expected.low]), torch.tensor([-math.inf, expected.high])
    nothing, found = observer.reduced_histograms(low, high)
    assert nothing is None
    assert torch.equal(found.counts, expected.counts)
    assert (found.exponent, found.zeros) == (expected.exponent, expected.zeros)
    assert list(observer.reduced_histograms(low, high)) == [None, None]


def test_gradients_of_step_sizes_add_up_until_they_are_asked_for():
    observer, like = Observer(["a", "b"]), torch.zeros(2)
    for part in (2.0, -0.5):
        observer.gradient_of(1, like).add_(part)
    assert observer.reduced_gradient(like).tolist() == [0, 1.5]
    assert observer.reduced_gradient(like).tolist() == [0, 0]


def test_what_is_forgotten_counts_no_more():
    observer = Observer(["a"])
    observer.observe(0, torch.tensor([1.0, math.nan]), relu=False, with_histogram=True)
    observer.gradient_of(0, torch.zeros(1)).add_(1)
    observer.forget()
    assert extremes(observer) == [[-math.inf, -math.inf, -1]]
    assert list(observer.reduced_histograms(torch.zeros(1), torch.zeros(1))) == [None]
    assert observer.reduced_gradient(torch.zeros(1)).tolist() == [0]


def test_histograms_of_every_tenth_batch_move_a_range_as_ten_averages_do():
    old, new = (
        (torch.tensor([-1.0, torch.nan]), torch.tensor([2.0, torch.nan])),
        (torch.full((2,), -3.0), torch.ones(2)),
    )
    ten = old
    for _ in range(10):
        ten = RULES["moving_average"].follow(*ten, *new)
    for name in ("percentile", "mse", "entropy"):
        assert RULES[name].every == 10
        torch.testing.assert_close(RULES[name].follow(*old, *new), ten)
    assert [bound[1].item() for bound in ten] == [-3, 1]


def test_every_name_of_the_settings_has_a_rule_and_no_other_does():
    assert [rule_of(name) for name in RANGES] == [RULES[name] for name in RANGES]
    assert set(RULES) == set(RANGES)
    with pytest.raises(UserError, match=r"ranges='minmax': .*did you mean 'min_max'"):
        rule_of("minmax")
