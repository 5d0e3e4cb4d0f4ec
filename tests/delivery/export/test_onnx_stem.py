"""Int8 files whose first convolution was widened compute what they did, and count as they did."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from lighten import calibrate_, export_onnx, quantize_
from lighten.delivery.export import onnx as onnx_graph
from lighten.delivery.export.onnx_stem import CHANNELS
from lighten.delivery.runtimes.onnx_count import count_onnx


def network(channels, groups=1):
    torch.manual_seed(0)
    first = nn.Conv2d(channels, 8 * groups, 3, padding=1, groups=groups)
    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(8 * groups, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3))


def export_both(model, images, folder, monkeypatch):
    # weights of 7 bits: sums of 8-bit ones saturate on x86 without VNNI, and which do depends on their order
    calibrate_(quantize_(model.eval(), example_input=images[:2], weight_bits=7), [images])
    wide = export_onnx(model, images[:2], folder / "wide.onnx")
    monkeypatch.setattr(onnx_graph, "widen_stems", lambda proto: None)
    return export_onnx(model, images[:2], folder / "plain.onnx"), wide


def run(path, images):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = onnxruntime.InferenceSession(str(path), options).run(None, {"input": images.numpy()})[0]
    return plain, onnxruntime.InferenceSession(str(path)).run(None, {"input": images.numpy()})[0]


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_widened_file_gives_the_same_bits_and_the_same_counts(channels, tmp_path, monkeypatch):
    images = torch.randn(64, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    plain, wide = export_both(network(channels), images, tmp_path, monkeypatch)
    stem = next(node for node in onnx.load(wide).graph.node if node.op_type == "Conv")
    weights = {t.name: t for t in onnx.load(wide).graph.initializer}
    stored = next(n for n in onnx.load(wide).graph.node if stem.input[1] in n.output).input[0]
    assert list(weights[stored].dims) == [8, CHANNELS, 3, 3]
    for ours, theirs in zip(run(wide, images), run(plain, images), strict=True):
        assert np.array_equal(ours, theirs)
    feed = {"input": images[:1].numpy()}
    before, after = count_onnx(plain, feed), count_onnx(wide, feed)
    assert after["macs"] == before["macs"]
    assert after["parameters"] == before["parameters"]


@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (2, 2)])
def test_what_has_channels_enough_or_groups_is_left_alone(channels, groups, tmp_path, monkeypatch):
    images = torch.randn(64, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    plain, wide = export_both(network(channels, groups), images, tmp_path, monkeypatch)
    assert wide.read_bytes() == plain.read_bytes()


def test_a_float_file_is_left_alone(tmp_path, monkeypatch):
    model, image = network(1).eval(), torch.zeros(2, 1, 8, 8)
    wide = export_onnx(model, image, tmp_path / "wide.onnx")
    monkeypatch.setattr(onnx_graph, "widen_stems", lambda proto: None)
    assert wide.read_bytes() == export_onnx(model, image, tmp_path / "plain.onnx").read_bytes()
