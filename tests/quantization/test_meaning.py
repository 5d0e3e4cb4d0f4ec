"""What a layer, its norm and its ReLU mean to others does not change when they are computed as one."""

import copy
import io

import pytest
import torch
from quantization_nets import lived_in
from torch import nn
from torch.nn.modules import module as torch_module
from torch.optim.swa_utils import update_bn

from lighten import calibrate_, quantize_
from lighten.quantization.activation_quantizers import Stage, quantizers_of
from lighten.quantization.install import unquantize_
from lighten.quantization.layers import FoldedNorm


def net():
    return lived_in(
        nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.Flatten(),
            nn.Linear(6 * 16, 3),
        )
    )  # fmt: skip


@pytest.fixture
def images():
    return torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def both(images):
    model = net().eval()
    return model, calibrate_(quantize_(copy.deepcopy(model), example_input=images[:2]), [images])


def relative(one, other):
    return float((one - other).detach().norm() / other.detach().norm())


@pytest.mark.parametrize("layer", range(5))
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_see_what_they_saw_in_float(both, images, layer, kind):
    seen = []
    for model in both:
        got = []

        def see(_module, *seen_by_hook, got=got):
            last = seen_by_hook[-1]
            got.append((last[0] if isinstance(last, tuple) else last).detach().clone())

        handle = getattr(model[layer], f"register_{kind}_hook")(see)
        output = model(images.requires_grad_())
        output.square().sum().backward()
        handle.remove()
        seen.append((got[0], output))
    (expected, output), (got, output_int8) = seen
    assert relative(output_int8, output) < 0.05
    assert relative(got, expected) < (0.25 if "backward" in kind else 0.05)  # where codes end, gradients do


def test_with_a_hook_the_numbers_are_those_without_it(both, images):
    model = both[1]
    without = model(images)
    for module in model[:5]:
        module.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(model(images), without, rtol=1e-4, atol=2e-3)  # biases are rounded only once folded


def test_hooks_for_all_modules_count_as_well(both, images):
    model, seen = both[1], {}
    handle = torch_module.register_module_forward_hook(lambda m, _, y: seen.setdefault(m, y))
    try:
        model(images)
    finally:
        handle.remove()
    assert seen[model[0]].lt(0).any()  # no ReLU yet
    assert relative(seen[model[0]], both[0][0](images)) < 0.05


def test_statistics_that_are_estimated_again_are_those_of_the_layers(images):
    """``update_bn`` sets them back and takes the momentum away; the float network is the oracle."""
    model = net().train()
    update_bn([images], model)
    int8 = calibrate_(quantize_(copy.deepcopy(model), example_input=images[:2]), [images])
    update_bn([images], int8)
    for norm in (1, 4):
        assert relative(int8[norm].running_mean, model[norm].running_mean) < 0.1
        assert relative(int8[norm].running_var, model[norm].running_var) < 0.1
        assert int8[norm].momentum == 0.1
    assert relative(int8.eval()(images), model.eval()(images)) < 0.1


def test_a_norm_that_averages_all_batches_is_not_folded(images):
    model = net()
    model[1].momentum = None
    quantize_(model, example_input=images[:2])
    assert [isinstance(m, FoldedNorm) for m in (model[1], model[4])] == [False, True]


def test_what_is_taken_off_leaves_the_float_network(images):
    model = net().eval()
    before, attributes = model(images), {name: set(vars(m)) for name, m in model.named_modules()}
    unquantize_(calibrate_(quantize_(model, example_input=images[:2]), [images]))
    assert torch.equal(model(images), before)
    assert {name: set(vars(m)) for name, m in model.named_modules()} == attributes
    assert [type(m) for m in model] == [type(m) for m in net()]


def test_a_quantized_model_can_be_saved_whole(both, images):
    file = io.BytesIO()
    torch.save(both[1], file)
    file.seek(0)
    read = torch.load(file, weights_only=False)
    assert torch.equal(read(images), both[1](images))
    assert torch.equal(copy.deepcopy(read)(images), both[1](images))
    assert quantizers_of(read).stage == Stage.ON


def test_ranges_are_in_the_state_dict_and_are_no_buffers(both, images):
    model, int8 = both
    assert [name for name, _ in int8.named_buffers()] == [name for name, _ in model.named_buffers()]
    fresh = quantize_(net().eval(), example_input=images[:2])
    fresh.load_state_dict(int8.state_dict())
    assert torch.equal(fresh(images), int8(images))
    assert quantizers_of(int8.to(torch.bfloat16)).low.dtype == torch.float32
