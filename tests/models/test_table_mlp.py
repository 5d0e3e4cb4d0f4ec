"""A network of tables is built again from its spec, pruned, quantized and exported like any other."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import lighten
from lighten.errors import UserError
from lighten.models import build_model, check_model
from lighten.utils.compression import record_of
from lighten.utils.inputs import example_of

SHAPE = {"numbers": 4, "categories": [3, 5]}


def build(shape=SHAPE, seed=0, **options):
    torch.manual_seed(seed)
    return build_model("table_mlp", num_classes=2, input_shape=shape, **{"hidden": [12, 10], "embedding": 6} | options)


def batch(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    categories = [torch.randint(size, (count,), generator=generator) for size in SHAPE["categories"]]
    return {"numbers": torch.randn(count, 4, generator=generator), "categories": torch.stack(categories, 1)}


def test_it_is_embed_join_affine_relu():
    model = build()
    inputs = batch(7)
    table = model.embed.weight
    joined = torch.cat([inputs["numbers"], table[inputs["categories"][:, 0]], table[3 + inputs["categories"][:, 1]]], 1)
    for layer in (m for m in model.features if isinstance(m, nn.Linear)):
        joined = (joined @ layer.weight.T + layer.bias).clamp(min=0)
    assert torch.allclose(model(**inputs), joined @ model.head.weight.T + model.head.bias, atol=1e-6)


def test_unknown_categories_say_nothing_before_they_are_learned():
    weight = build().embed.weight
    assert not weight[[0, 3]].any()
    assert weight[[1, 2, 4, 5, 6, 7]].any(1).all()


def test_parameters_and_layers():
    model = build(batch_norm=True, dropout=0.25)
    weights = 8 * 6 + (4 + 2 * 6) * 12 + 12 * 10 + 10 * 2
    assert sum(p.numel() for p in model.parameters()) == weights + 2 * (12 + 10) + 2
    assert [type(m).__name__ for m in model.features] == ["Linear", "BatchNorm1d", "ReLU", "Dropout"] * 2


@pytest.mark.parametrize("shape", [{"numbers": 3, "categories": []}, {"numbers": 0, "categories": [4]}])
def test_numbers_or_categories_alone(shape):
    model = build(shape)
    example = example_of(shape, 3)
    assert len(example) == 1
    assert model(**example).shape == (3, 2)
    assert lighten.plan_pruning(model, example, 0.5).groups


def test_its_spec_builds_it_again():
    model = build()
    spec = json.loads(json.dumps(record_of(model).spec))
    assert spec["input_shape"] == SHAPE
    again = build_model(spec["name"], num_classes=2, input_shape=spec["input_shape"], **spec["options"])
    again.load_state_dict(model.state_dict())
    inputs = batch(5)
    assert torch.equal(again(**inputs), model(**inputs))
    check_model("table_mlp", {"hidden": [8]})


def test_masked_and_cut_agree():
    model = build(batch_norm=True, dropout=0.5).double()
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    model.eval()
    inputs = {name: v.double() if v.is_floating_point() else v for name, v in batch(9).items()}
    plan = lighten.plan_pruning(model, inputs, 0.5)
    small = lighten.shrink(model, plan)
    lighten.mask_(model, plan)
    assert torch.allclose(small(**inputs), model(**inputs), rtol=0, atol=1e-12)
    assert small.embed.weight.shape == (8, 3)
    assert [m.out_features for m in small.features if isinstance(m, nn.Linear)] == [6, 5]
    assert small.features[0].in_features == 4 + 2 * 3


@pytest.mark.parametrize("quantized", [False, True])
def test_it_is_exported_with_both_inputs_and_any_batch(tmp_path, quantized):
    import onnxruntime

    model = build(batch_norm=True).eval()
    if quantized:
        lighten.quantize_(model, example_input=batch(4))
        lighten.calibrate_(model, [batch(64, seed) for seed in range(3)])
        assert model.activation_ranges.names == ["features.0.input", "features.0.output", "features.3.output"]
    lighten.export_onnx(model, batch(4), tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("numbers", "tensor(float)", ["batch", 4]),
        ("categories", "tensor(int64)", ["batch", 2]),
    ]
    for count in (1, 33):
        inputs = batch(count, 9)
        (found,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        assert np.allclose(found, model(**inputs).detach(), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "options", "says"),
    [
        ((1, 28, 28), {}, "model table_mlp reads tables of numbers and categories, and the inputs are (1, 28, 28)"),
        (
            {"numbers": 3},
            {},
            "model table_mlp reads tables of numbers and categories, and the inputs are {'numbers': 3}",
        ),
        ({"numbers": 0, "categories": []}, {}, "model table_mlp: numbers=0, expected an integer of at least 1"),
        ({"numbers": 1, "categories": [1 << 40]}, {}, "categories[0]=1099511627776, expected at most 65536"),
        (SHAPE, {"hidden": []}, "model table_mlp: hidden=[], expected a list of integers"),
        (SHAPE, {"embedding": 0}, "model table_mlp: embedding=0, expected an integer of at least 1"),
        (SHAPE, {"dropout": 1.0}, "model table_mlp: dropout=1.0, expected a share from 0, below 1"),
        (SHAPE, {"hiden": [3]}, "model table_mlp: no option 'hiden'; did you mean 'hidden'?"),
    ],
)
def test_bad_options(shape, options, says):
    with pytest.raises(UserError) as caught:
        build(shape, **options)
    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet20", "bert_rows", "transformers"])
def test_models_of_images_and_texts_refuse_tables(name):
    with pytest.raises(
        UserError, match=f"model {name} reads images or texts, and the data is a table of numbers; choose"
    ):
        build_model(name, num_classes=2, input_shape=SHAPE)
