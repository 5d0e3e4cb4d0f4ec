"""Ranges of all activations: their updates against a loop over locations, their way through state dicts and copies."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from quantization_nets import Residual, lived_in, relative_error, trained_through_int8
from torch import nn

from lighten.errors import UserError
from lighten.quantization import calibrate_, quantize_
from lighten.quantization.activation_quantizers import ActivationQuantizers, Stage, quantizers_in, quantizers_of
from lighten.quantization.fake_quant import quantization_parameters

EXAMPLE = torch.zeros(2, 1, 8, 8)


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(8, 1, 8, 8, generator=generator) for _ in range(3)]


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(16, 1, 8, 8) + 1


def test_state_dict_carries_ranges_and_stage(batches):
    trained = calibrate_(quantize_(lived_in(Residual()), example_input=EXAMPLE), batches)
    fresh = quantize_(Residual().eval(), example_input=EXAMPLE)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh(batches[0]), trained(batches[0]))
    of_float = quantize_(Residual(), example_input=EXAMPLE)
    of_float.load_state_dict(Residual().state_dict())
    assert quantizers_of(of_float).stage == 0


def test_a_deep_copy_is_independent(batches):
    model = calibrate_(quantize_(lived_in(Residual()), example_input=EXAMPLE), batches)
    copied = copy.deepcopy(model)
    before = copied(batches[0])
    with torch.no_grad():
        model.norm1.weight.zero_()
        quantizers_of(model).high.mul_(2)
        quantizers_of(model).refresh()
    assert torch.equal(copied(batches[0]), before)
    assert copied.conv1.quantizers.norm is copied.norm1


class Dropping(nn.Module):
    """Skips blocks at random in training, each of three times the magnitude of the one before."""

    def __init__(self, share):
        super().__init__()
        self.share, self.stem = share, nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for k, block in enumerate(self.blocks):
            if not (self.training and torch.rand(()) < self.share):
                x = x + 3.0**k * block(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("seed", range(4))
def test_blocks_that_training_skips_at_random_are_no_error(seed, x):
    torch.manual_seed(seed)
    model = Dropping(0.3).eval()
    expected = model(x)
    quantized = trained_through_int8(quantize_(model, example_input=x[:2], weight_bits=8), x, steps=20, seed=seed)
    assert relative_error(quantized(x), expected) < 0.05


def known(low, high, ranges="min_max", **settings):
    """Return quantizers whose locations a, b, c … have these ranges."""
    quantizers = ActivationQuantizers("abcdefgh"[: len(low)], ranges, **settings)
    quantizers.low.copy_(torch.tensor(low))
    quantizers.high.copy_(torch.tensor(high))
    quantizers.settled.copy_(~quantizers.low.isnan())
    quantizers.refresh()
    return quantizers


def ranges_of(quantizers):
    return list(zip(quantizers.low.tolist(), quantizers.high.tolist(), strict=True))


def slow_update(ranges, settled, seen, follow):
    """Update ranges by location: behind one that was skipped they grow alone, and count as new until none was."""
    whole = True
    for i in range(len(ranges)):
        if i not in seen:
            whole = False
            continue
        low, high = seen[i]
        if not whole and ranges[i] is not None:
            low, high = min(low, ranges[i][0]), max(high, ranges[i][1])
        ranges[i] = follow(ranges[i], (low, high)) if i in settled else (low, high)
        if whole:
            settled.add(i)


FOLLOW = {
    "min_max": lambda old, new: (min(old[0], new[0]), max(old[1], new[1])),
    "moving_average": lambda old, new: tuple(a + 0.05 * (b - a) for a, b in zip(old, new, strict=True)),
}


@pytest.mark.parametrize("ranges", FOLLOW)
@pytest.mark.parametrize("seed", range(5))
def test_ranges_follow_a_loop_over_locations_however_many_a_step_skips(ranges, seed):
    generator = torch.Generator().manual_seed(seed)
    quantizers, expected, settled = ActivationQuantizers("abcd", ranges), [None] * 4, set()
    quantizers.restart()
    for _ in range(12):
        reached = (torch.rand(4, generator=generator) < 0.7).nonzero().flatten().tolist()
        data = {i: torch.randn(6, generator=generator) for i in reached}
        for i, values in data.items():
            quantizers.observe(i, values)
        quantizers.update()
        slow_update(expected, settled, {i: (float(v.min()), float(v.max())) for i, v in data.items()}, FOLLOW[ranges])
        for ours, theirs in zip(ranges_of(quantizers), expected, strict=True):
            assert ours == pytest.approx(theirs or (math.nan, math.nan), rel=1e-5, nan_ok=True)
        assert [quantizers.waits(i) for i in range(4)] == [i not in settled for i in range(4)]
    assert settled


def test_parameters_are_those_of_the_ranges_and_unknown_where_there_are_none():
    quantizers = known([-1.0, math.nan, 0.0], [3.0, math.nan, 5.0])
    assert quantizers.parameters_of == [quantization_parameters(-1, 3), None, quantization_parameters(0, 5)]
    assert [quantizers.input_scale(i) for i in range(3)] == [pytest.approx(4 / 255), None, pytest.approx(5 / 255)]
    assert quantizers.unknown() == ["b"]
    assert quantizers.unwritten() == ["a", "c"]
    quantizers.written.add(2)
    assert quantizers.unwritten() == ["a"]
    quantizers.high[2] = math.inf
    with pytest.raises(UserError, match=r"^quantize: activations at 'c' are not finite \(.*\); lower the"):
        quantizers.refresh()


def test_a_learned_step_size_moves_by_a_percent_and_a_new_location_begins_with_its_extremes():
    """The first step of Adam is one learning rate long, whatever the gradient; zero points stay."""
    quantizers = known([-1.0, -2.0, math.nan, -4.0], [3.0, 4.0, math.nan, 4.0], "lsq")
    quantizers.stage, quantizers.observing = Stage.ON, True
    for index, gradient in ((0, 7.0), (1, -0.1), (3, math.inf)):
        quantizers.observer.gradient_of(index, quantizers.low).add_(gradient)
        quantizers.observe(index, torch.tensor([-9.0, 9.0]))
    quantizers.observe(2, torch.tensor([-0.5, 0.25]))
    quantizers.update()
    less, more = math.exp(-0.01), math.exp(0.01)
    expected = [(-less, 3 * less), (-2 * more, 4 * more), (-0.5, 0.25), (-4, 4)]
    for ours, theirs in zip(ranges_of(quantizers), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert quantizers.settled.all()


def test_a_step_that_is_passed_over_leaves_no_trace():
    quantizers = known([-1.0], [1.0])
    quantizers.observing = True
    quantizers.observe(0, torch.tensor([math.nan]))
    quantizers.forget_batch()
    assert not quantizers.observing
    quantizers.update()
    assert ranges_of(quantizers) == [(-1, 1)]


@pytest.mark.parametrize("change", [{"names": "ab"}, {"weight_bits": 4}], ids=["a location more", "other bits"])
def test_a_checkpoint_of_another_quantization_is_refused(change):
    quantizers = known([-1.0], [1.0])
    other = ActivationQuantizers(**({"names": ["a"], "ranges": "min_max", "weight_bits": 8} | change))
    with pytest.raises(UserError, match=r"network was quantized otherwise: 1 places, this one has \d with weight_bits"):
        other.load_state_dict(quantizers.state_dict())
    other = ActivationQuantizers(["b"], "min_max")
    with pytest.raises(UserError, match="quantized otherwise"):
        other.load_state_dict(quantizers.state_dict())


def test_a_checkpoint_from_before_settled_counts_known_ranges_as_settled():
    state = known([-1.0, math.nan], [1.0, math.nan]).state_dict()
    del state["settled"], state["format"]
    fresh = ActivationQuantizers("ab", "min_max")
    fresh.load_state_dict(state)
    assert fresh.settled.tolist() == [True, False]
    assert fresh.parameters_of == [quantization_parameters(-1, 1), None]


def test_ranges_that_are_held_stay_when_weights_are_loaded():
    quantizers = known([-1.0], [1.0])
    quantizers.held = True
    other = known([-2.0], [2.0])
    other.stage = Stage.ON
    quantizers.load_state_dict(other.state_dict())
    assert (ranges_of(quantizers), quantizers.stage) == ([(-1, 1)], Stage.OFF)
    quantizers.held = False
    quantizers.load_state_dict(other.state_dict())
    assert (ranges_of(quantizers), quantizers.stage) == ([(-2, 2)], Stage.ON)


def test_quantizers_that_follow_another_become_its_equal_and_reset_ones_know_nothing():
    quantizers, other = known([-1.0], [1.0]), known([-2.0], [2.0])
    other.stage = Stage.ON
    quantizers.follow(other)
    other.reset_parameters()
    assert (quantizers.parameters_of, quantizers.stage) == ([quantization_parameters(-2, 2)], Stage.ON)
    assert (other.parameters_of, other.stage, other.settled.tolist()) == ([None], Stage.OFF, [False])


def test_quantizers_are_found_from_a_part_of_a_model_and_asked_of_no_other(batches):
    model = quantize_(Residual(), example_input=EXAMPLE)
    assert quantizers_in(model) == quantizers_in(model.conv1) == [quantizers_of(model)]
    assert quantizers_in(Residual()) == []
    with pytest.raises(UserError, match=r"^Residual has no fake-quantizers; call quantize_ on it first$"):
        quantizers_of(Residual())
