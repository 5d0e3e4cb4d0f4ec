"""The speed gate on real files: ratios from given times, and the likely cause of each bad one."""

import re

import pytest
import torch
from quantization_nets import Residual, lived_in
from torch import nn

from lighten.delivery.export.prepare import in_float
from lighten.delivery.export.targets import export_onnx
from lighten.delivery.measure.int8_check import int8_vs_float
from lighten.quantization.post_training import quantize_post_training

VNNI = frozenset({"avx512_vnni"})


def times(batch_1, batch_32):
    return {"batch_1": {"median": batch_1, "p90": batch_1}, "batch_32": {"median": batch_32, "p90": batch_32}}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return pairs of quantized and float file: wide enough for int8 kernels, narrow, dynamic, in half."""
    folder, made = tmp_path_factory.mktemp("gate"), {}
    x = torch.randn(8, 1, 8, 8)
    for name, width, mode in (("wide", 32, "static"), ("narrow", 4, "static"), ("dynamic", 32, "dynamic"),
                              ("half", 32, "float16")):  # fmt: skip
        model = lived_in(Residual(width))
        if mode == "dynamic":
            with pytest.warns(UserWarning, match="slower than in float32"):
                model = quantize_post_training(model, mode=mode)
        else:
            model = quantize_post_training(model, [x], mode=mode)
        quantized = export_onnx(model, x[:2], folder / f"{name}.onnx")
        made[name] = quantized, export_onnx(in_float(model), x[:2], folder / f"{name}_float.onnx")
    return made


def found(files, name, int8, floating, flags=VNNI):
    return int8_vs_float(*files[name], {"int8": int8, "float": floating}, runtime="onnxruntime", flags=flags)


def test_a_good_file_passes_with_its_ratios(files):
    result = found(files, "wide", times(1.0, 10.0), times(2.0, 25.0))
    assert (result["speedup_batch_1"], result["speedup_batch_32"]) == (2.0, 2.5)
    int8, floating = files["wide"]
    assert result["size_ratio"] == floating.stat().st_size / int8.stat().st_size > 1.5
    assert result["warnings"] == []


@pytest.mark.parametrize(
    ("name", "times_ms", "flags", "cause"),
    [
        (
            "wide",
            2.0,
            frozenset({"avx2"}),
            r"0.50 of float32's speed in onnxruntime at batch 1 \(4 against 2 ms\): .*VNNI",
        ),
        ("wide", 0.02, VNNI, "so small that quantizing costs more than it saves"),
        ("wide", 2.0, VNNI, r"7 quantize operators stand beside 3 products"),
        ("narrow", 2.0, VNNI, "half of its layers have 4 channels or fewer"),
        ("dynamic", 2.0, VNNI, "dynamically quantized convolutions slowly; use mode static"),
        ("half", 2.0, VNNI, "stored in 16 bits and computed with in 32"),
    ],
)
def test_a_slow_file_is_told_with_its_likely_cause(files, name, times_ms, flags, cause):
    result = found(files, name, times(2 * times_ms, 1.0), times(times_ms, 1.0), flags)
    slow = [warning for warning in result["warnings"] if "speed" in warning]
    assert len(slow) == 1
    assert re.search(cause, slow[0]), slow[0]


def test_a_file_that_is_larger_is_told(files):
    result = found(files, "narrow", times(1.0, 1.0), times(2.0, 2.0))
    assert any("larger than in float32" in warning for warning in result["warnings"])


def test_in_float_is_the_network_before_quantization():
    model = lived_in(Residual())
    x = torch.randn(8, 1, 8, 8)
    small = quantize_post_training(model, [x])
    assert not torch.equal(small(x), model(x))
    assert torch.equal(in_float(small)(x), model(x))
    assert isinstance(small.conv1, nn.Conv2d)
