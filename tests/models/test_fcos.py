import copy
import math

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

import lighten
from lighten.delivery.runtimes.runners import open_runner
from lighten.errors import UserError
from lighten.models import build_model, check_model
from lighten.models.fcos import answers
from lighten.quantization.activation_quantizers import quantizers_of

KINDS = {
    "two": {"widths": [4, 8, 12], "neck": 8},
    "one": {"widths": [4, 6], "levels": 1, "neck": 6, "depth": 0, "stem_stride": 1},
    "three": {"widths": [4, 6, 8], "levels": 3, "neck": 6, "blocks": 2, "depth": 2},
}


@pytest.fixture(params=KINDS)
def network(request):
    """A detector in evaluation mode whose statistics are not those of a fresh one, and images for it."""
    torch.manual_seed(0)
    model = build_model("fcos", num_classes=3, input_shape=(2, 24, 32), **KINDS[request.param])
    for head in model.heads:
        torch.nn.init.normal_(head.boxes[-1].weight, std=0.1)
        torch.nn.init.normal_(head.classes[-1].weight, std=0.1)
    for _ in range(3):
        model(torch.randn(4, 2, 24, 32))
    return model.eval(), torch.randn(3, 2, 24, 32)


def by_hand(model, x, *, blocks, levels, depth, stem_stride, stages):
    """Backbone, pyramid and heads from the weights alone, place by place."""
    state = model.state_dict()

    def norm(name, x):
        mean, var = (state[f"{name}.running_{kind}"][:, None, None] for kind in ("mean", "var"))
        x = (x - mean) / (var + 1e-5).sqrt()
        return x * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]

    def conv(name, x, stride=1):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state.get(f"{name}.bias"), stride, padding=weight.shape[2] // 2)

    def layer(name, x, stride=1):
        return norm(f"{name}.1", conv(f"{name}.0", x, stride)).clamp(0)

    def block(name, x, stride):
        out = norm(f"{name}.bn1", conv(f"{name}.conv1", x, stride)).clamp(0)
        out = norm(f"{name}.bn2", conv(f"{name}.conv2", out))
        if f"{name}.shortcut.0.weight" in state:
            x = norm(f"{name}.shortcut.1", conv(f"{name}.shortcut.0", x, stride))
        return (out + x).clamp(0)

    x = layer("stem", x, stem_stride)
    kept = []
    for stage in range(stages):
        for number in range(blocks):
            x = block(f"stages.{stage}.{number}", x, 2 if stage and not number else 1)
        kept.append(x)
    rows, above = [], None
    for level in reversed(range(levels)):
        x = norm(f"lateral.{level}.1", conv(f"lateral.{level}.0", kept[stages - levels + level]))
        if above is not None:
            x = x + above.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, : x.shape[2], : x.shape[3]]
        above, x = x, layer(f"neck.{level}", x)
        found = {}
        for branch in ("boxes", "classes"):
            y = x
            for number in range(depth):
                y = layer(f"heads.{level}.{branch}.{number}", y)
            found[branch] = conv(f"heads.{level}.{branch}.{depth}", y)
        found["classes"] = found["classes"] + state[f"heads.{level}.prior"]
        height, width = x.shape[2:]
        here = []
        for row in range(height):
            for column in range(width):
                right, down, wide, high = found["boxes"][:, :, row, column].unbind(1)
                box = [
                    (column + 0.5 + right) / width, (row + 0.5 + down) / height, wide.exp() / width, high.exp() / height
                ]  # fmt: skip
                here.append(torch.cat([torch.stack(box, 1), found["classes"][:, :, row, column]], 1))
        rows = here + rows
    return torch.stack(rows, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(24, 32), (23, 18)])
def test_it_is_the_network_of_the_paper(kind, size):
    torch.manual_seed(1)
    given = KINDS[kind]
    model = build_model("fcos", num_classes=3, input_shape=(2, *size), **given)
    for head in model.heads:
        torch.nn.init.normal_(head.boxes[-1].weight, std=0.1)
    model(torch.randn(4, 2, *size))
    model.eval().double()
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    options = {"blocks": 1, "levels": 2, "depth": 1, "stem_stride": 2} | {
        key: value for key, value in given.items() if key not in ("widths", "neck")
    }
    expected = by_hand(model, x, stages=len(given["widths"]), **options)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-10)


def test_boxes_are_shares_of_the_image():
    boxes = torch.zeros(1, 4, 2, 4)
    boxes[0, :, 1, 2] = torch.tensor([0.5, -0.5, math.log(2), 0.0])  # half a cell right, half a cell up
    found = answers(boxes, torch.arange(8.0).view(1, 1, 2, 4))
    assert found[0, :, 4].tolist() == list(range(8))
    torch.testing.assert_close(found[0, 6], torch.tensor([3 / 4, 1 / 2, 2 / 4, 1 / 2, 6.0]))
    torch.testing.assert_close(found[0, 0], torch.tensor([1 / 8, 1 / 4, 1 / 4, 1 / 2, 0.0]))


def test_boxes_stay_finite_and_exact_in_16_bits():
    boxes = torch.full((1, 4, 1, 256), 1000.0).bfloat16()
    boxes[:, :2] = 0
    found = answers(boxes, torch.zeros(1, 2, 1, 256).bfloat16())
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert torch.equal(found[0, :, 0] * 256, torch.arange(256) + 0.5)


def test_a_fresh_one_hardly_believes_in_anything():
    torch.manual_seed(0)
    model = build_model("fcos", num_classes=10, input_shape=(1, 64, 64)).eval()
    found = model(torch.randn(2, 1, 64, 64)).detach()
    assert found.shape == (2, 16 * 16 + 8 * 8, 14)
    assert (found[..., 4:].sigmoid() - 0.01).abs().max() < 0.01
    assert (found[0, :256, 2:4] * 16).log().mean().exp() == pytest.approx(4, rel=0.5)
    assert found[..., :2].amin() > 0
    assert found[..., :2].amax() < 1


def test_pruned_is_as_masked(network):
    model, x = network
    plan = lighten.plan_pruning(model, x, 0.5)
    masked, small = copy.deepcopy(model).double(), lighten.shrink(model, plan).double()
    lighten.mask_(masked, plan)
    last = {f"heads.{i}.{kind}.{len(h.boxes) - 1}" for i, h in enumerate(model.heads) for kind in ("boxes", "classes")}
    assert set(plan.frozen) == last
    torch.testing.assert_close(small(x.double()), masked(x.double()), rtol=0, atol=1e-10)
    sizes = [
        {name: module.out_channels for name, module in net.named_modules() if hasattr(module, "out_channels")}
        for net in (model, small)
    ]
    assert {name: 2 * size for name, size in sizes[1].items() if name not in last} == {
        name: size for name, size in sizes[0].items() if name not in last
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
        # boxes are made of the last layers' answers in floating point: none of it is rounded
        assert not [name for name in placement.locations if ":" in name and name.startswith((":cat", "heads"))]
        change = (quantized(x) - expected).abs()
    assert 0 < change[..., :2].max() < 0.05
    assert (quantized(x)[..., 2:4] / expected[..., 2:4]).log().abs().max() < 0.4
    assert change[..., 4:].max() < 0.2 * expected[..., 4:].abs().max()


@pytest.mark.parametrize("network", ["two"], indirect=True)
def test_files_take_any_batch(network, tmp_path):
    model, x = network
    quantized = lighten.quantize_(copy.deepcopy(model), example_input=x)
    lighten.calibrate_(quantized, [x])
    lighten.export_onnx(quantized, x, tmp_path / "int8.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx")
    for batch in (1, 5):
        images = torch.randn(batch, 2, 24, 32, generator=torch.Generator().manual_seed(batch))
        (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        with torch.no_grad():
            expected = quantized(images).numpy()
        assert np.abs(found - expected).max() < np.abs(expected).max() / 50


@pytest.mark.parametrize("network", ["one"], indirect=True)
def test_boxes_are_not_rounded_where_they_meet_logits(network, tmp_path):
    """LiteRT's converter gives what is joined with rounded numbers their range, which would leave nothing of a box."""
    model, x = network
    quantized = lighten.calibrate_(lighten.quantize_(copy.deepcopy(model), example_input=x, weight_bits=7), [x])
    path = lighten.export(quantized, x[:1], tmp_path / "int8.tflite", target="litert")
    with open_runner(path) as runner, torch.no_grad():
        found = runner.run(runner.feed(((x[:1],), {})))
        torch.testing.assert_close(torch.from_numpy(found), quantized(x[:1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"widths": []}, "model fcos: widths=[], expected a list of integers"),
        ({"widths": [8, 0]}, "model fcos: widths[1]=0, expected an integer of at least 1"),
        ({"blocks": 0}, "model fcos: blocks=0"),
        ({"levels": 4}, "model fcos: levels=4, expected at most 3"),
        ({"neck": 0}, "model fcos: neck=0"),
        ({"depth": -1}, "model fcos: depth=-1"),
        ({"stem_stride": 3}, "model fcos: stem_stride=3, expected 1 or 2"),
        ({"widths": [8] * 6}, "halve a side of 32 pixels to nothing; give fewer widths"),
    ],
)
def test_bad_options_are_told_in_one_line(options, says):
    with pytest.raises(UserError) as caught:
        check_model("fcos", options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
