import copy

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

import lighten
from lighten.errors import UserError
from lighten.models import build_model, check_model
from lighten.quantization.activation_quantizers import quantizers_of

KINDS = {
    "nearest": {"depth": 2, "width": 4},
    "transposed": {"depth": 2, "width": 4, "upsample": "transposed"},
    "residual": {"depth": 1, "width": 4, "residual": True},
}


@pytest.fixture(params=KINDS)
def network(request):
    """A U-Net in evaluation mode whose statistics are not those of a fresh one, and images for it."""
    torch.manual_seed(0)
    model = build_model("unet", num_classes=2, input_shape=(2, 16, 24), **KINDS[request.param])
    for _ in range(3):
        model(torch.randn(4, 2, 16, 24))
    return model.eval(), torch.randn(3, 2, 16, 24)


def by_hand(model, x, *, depth, transposed):
    """The paper's figure 1, level by level, from the weights alone."""
    state = model.state_dict()

    def block(name, x):
        for conv, norm in ((f"{name}.0", f"{name}.1"), (f"{name}.3", f"{name}.4")):
            x = F.conv2d(x, state[f"{conv}.weight"], padding=1)
            mean, var = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
            x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
            x = (x * state[f"{norm}.weight"][:, None, None] + state[f"{norm}.bias"][:, None, None]).clamp(0)
        return x

    kept = [block("start", x)]
    for level in range(depth):
        kept.append(block(f"down.{level}.1", kept[-1].unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))))
    x = kept.pop()
    for level in range(depth):
        if transposed:
            weight, bias = state[f"enlarge.{level}.weight"], state[f"enlarge.{level}.bias"]
            n, _, h, w = x.shape
            parts = torch.einsum("nihw,iopq->nohpwq", x, weight)
            x = parts.reshape(n, -1, 2 * h, 2 * w) + bias[:, None, None]
        else:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = block(f"up.{level}", torch.cat([kept.pop(), x], 1))
    return torch.einsum("nihw,oi->nohw", x, state["head.weight"][:, :, 0, 0]) + state["head.bias"][:, None, None]


@pytest.mark.parametrize("upsample", ["nearest", "transposed"])
@pytest.mark.parametrize("depth", [1, 3])
def test_it_is_the_network_of_the_paper(upsample, depth):
    torch.manual_seed(1)
    model = build_model("unet", num_classes=5, input_shape=(3, 16, 8), depth=depth, width=2, upsample=upsample)
    model(torch.randn(4, 3, 16, 8))
    model.eval().double()
    x = torch.randn(2, 3, 16, 8, dtype=torch.float64)
    expected = by_hand(model, x, depth=depth, transposed=upsample == "transposed")
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(13, 9), (1, 30), (7, 16), (16, 8)])
@pytest.mark.parametrize("residual", [False, True])
def test_other_sizes_are_filled_up_with_zeros_and_cropped(shape, residual):
    torch.manual_seed(1)
    options = {"depth": 3, "width": 2, "residual": residual}
    model = build_model("unet", num_classes=2, input_shape=(2, *shape), **options).eval()
    x = torch.randn(2, 2, *shape)
    filled = torch.zeros(2, 2, 32, 32)[:, :, : -(-shape[0] // 8) * 8, : -(-shape[1] // 8) * 8]
    filled[:, :, : shape[0], : shape[1]] = x
    torch.testing.assert_close(model(x), model(filled)[:, :, : shape[0], : shape[1]])
    assert model(x).shape == x.shape


def test_a_residual_network_answers_with_the_change():
    torch.manual_seed(1)
    plain, residual = (
        build_model("unet", num_classes=1, input_shape=(1, 8, 8), depth=1, width=2, residual=given)
        for given in (False, True)
    )
    residual.load_state_dict(plain.state_dict())
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(residual.eval()(x), x + plain.eval()(x))


def test_pruned_is_as_masked_and_nearly_three_quarters_of_the_work_go(network):
    model, x = network
    plan = lighten.plan_pruning(model, x, 0.5)
    masked, small = copy.deepcopy(model).double(), lighten.shrink(model, plan).double()
    lighten.mask_(masked, plan)
    assert list(plan.frozen) == ["head"]
    torch.testing.assert_close(small(x.double()), masked(x.double()), rtol=0, atol=1e-12)
    assert not torch.allclose(small(x.double()), model.double()(x.double()))
    sizes = [
        {name: module.out_channels for name, module in net.named_modules() if hasattr(module, "out_channels")}
        for net in (model, small)
    ]
    assert {name: 2 * size for name, size in sizes[1].items() if name != "head"} == {
        name: size for name, size in sizes[0].items() if name != "head"
    }


def test_quantized_answers_are_near_and_no_layer_is_left_out(network):
    model, x = network
    with torch.no_grad():
        expected = model(x)
        quantized = lighten.quantize_(copy.deepcopy(model), example_input=x)
        lighten.calibrate_(quantized, [x])
        placement = quantizers_of(quantized).placement
        assert not placement.left
        assert set(placement.layers) == {n for n, m in model.named_modules() if type(m).__name__.startswith("Conv")}
        change = (quantized(x) - expected).abs()
    assert 0 < change.max() < 0.2 * expected.abs().max()


def test_files_take_any_batch(network, tmp_path):
    model, x = network
    quantized = lighten.quantize_(copy.deepcopy(model), example_input=x)
    lighten.calibrate_(quantized, [x])
    lighten.export_onnx(quantized, x, tmp_path / "int8.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx")
    for batch in (1, 5):
        images = torch.randn(batch, 2, 16, 24, generator=torch.Generator().manual_seed(batch))
        (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        with torch.no_grad():
            expected = quantized(images).numpy()
        assert np.abs(found - expected).max() < np.abs(expected).max() / 100


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"depth": 0}, "model unet: depth=0, expected an integer of at least 1"),
        ({"depth": 13}, "model unet: depth=13, expected at most 12"),
        ({"width": 0}, "model unet: width=0"),
        ({"width": 65536}, "model unet: width=65536, expected at most 8192"),
        ({"upsample": "nearst"}, "model unet: upsample='nearst'; did you mean 'nearest'?"),
        ({"residual": "yes"}, "model unet: residual='yes': expected true or false"),
    ],
)
def test_bad_options_are_told_in_one_line(options, says):
    with pytest.raises(UserError) as caught:
        check_model("unet", options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_residual_network_answers_with_as_many_channels():
    check_model("unet", {"residual": True})
    with pytest.raises(UserError, match="residual adds the input of 1 channels to an answer of 11"):
        build_model("unet", num_classes=11, input_shape=(1, 8, 8), residual=True)
