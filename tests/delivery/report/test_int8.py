"""Quantization in words and rows, against what a run's files hold."""

import json

import pytest
from finished_run import make_compression, make_gate, make_layers, make_scores, make_targets

from lighten.delivery.report.figures import amount, milliseconds, percent
from lighten.delivery.report.int8 import (
    count,
    int8_vs_float,
    layers_of,
    left_in_float,
    method,
    plain,
    read_compression,
    runtimes,
    warnings_of,
)
from lighten.errors import UserError
from lighten.utils.targets import TARGETS

WHOLE = "weights in 8 bits, a scale a channel; activations in 8 bits,"


def said(parts):
    return None if parts is None else plain(parts).replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, f"Quantized while training, through fake-quantized int8: {WHOLE} ranges fixed."),
        ({"mode": "static", "ranges": "own"}, f"Quantized after training: {WHOLE} ranges by own."),
        (
            {"mode": "static", "ranges": "lsq", "calibration": {"samples": 1512, "split": "train"}},
            f"Quantized after training: {WHOLE} ranges by learned step sizes (lsq), calibrated on 1,512 samples of the "
            "train split.",
        ),
        (
            {"mode": "dynamic", "weight_bits": 4},
            "Quantized after training: weights in 4 bits, a scale a channel; activations in 8 bits, their range taken "
            "anew in each call.",
        ),
        ({"mode": "float16"}, "Quantized after training: weights stored in float16, computed with in float32."),
        ({"mode": "bfloat16"}, "Quantized after training: weights stored in bfloat16, computed with in float32."),
        ({"mode": "other"}, "Quantized: other."),
    ],
)
def test_the_way_it_was_quantized(settings, told):
    assert method({"quantization": settings}) == told
    left = method({"quantization": settings | {"exclude": ["a", "b"]}}, quote="`")
    assert left == f"{told} Left out by request: `a`, `b`."


def test_of_floating_point_nothing_is_said():
    for compression in ({}, {"quantization": None, "layers": []}):
        assert method(compression) is count(compression) is left_in_float(compression) is None
    for scores in (None, make_scores()):
        assert int8_vs_float(scores) is runtimes(scores) is None
        assert warnings_of(scores) == []


def test_layers_are_rows_of_the_file():
    layers = layers_of(make_compression())
    assert [layer.name for layer in layers] == [row["name"] for row in make_layers()]
    first, convolution = layers[0], layers[1]
    assert (first.bits, first.quantized, first.note, first.input) == ("float", False, "excluded by 'stem.*'", "–")
    assert (convolution.bits, convolution.note) == ("8", "with BatchNorm2d and ReLU")
    low, high = make_layers()[1]["input"]
    assert convolution.input == f"{low:.3g} to {high:.3g}".replace("-", "−")
    assert {layer.bits for layer in layers_of(make_compression(mode="float16")) if layer.kind == "add"} == {"16"}


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        ([0, 0.12345], "0 to 0.123"),
        ([-1e-5, 3e-12], "−1e−5 to 3e−12"),
        ([-2.5e10, 1e100], "−2.5e10 to 1e100"),
        ([None, 1.0], "–"),
        (None, "–"),
    ],
)
def test_ranges_are_short(bounds, told):
    assert layers_of({"layers": [{"name": "a", "input": bounds}]})[0].input == told


def test_layers_are_counted_and_those_in_float_are_named_up_to_eight():
    def of(floating, others, **quantization):
        rows = [{"name": f"f{i}", "note": "floating point"} for i in range(floating)]
        rows += [{"name": f"q{i}", "weight_bits": 8} for i in range(others)]
        return {"quantization": quantization, "layers": rows}

    assert count(of(2, 19)) == "19 of 21 layers in int8"
    assert count(of(0, 1, mode="float16")) == "1 of 1 layer in float16"
    assert left_in_float(of(0, 3)) is None
    assert left_in_float(of(8, 3)) == "f0, f1, f2, f3, f4, f5, f6, f7"
    assert left_in_float(of(10, 0), quote="'") == "'f0', 'f1', 'f2', 'f3', 'f4', 'f5', 'f6', 'f7' and 2 more"


def test_int8_is_held_against_float_number_by_number():
    gate = make_gate()
    line = int8_vs_float(make_scores() | {"gate": gate})
    figures = [part for part in line if not isinstance(part, str)]
    assert len(figures) == 9
    for part in figures:
        value = gate
        for key in part.key.split(".")[1:]:
            value = value[key]
        assert part.value == value, part.key
    slower = 1 / gate["speedup_batch_32"]
    float_ms, int8_ms = (gate[f"{side}_latency_ms"]["batch_32"]["median"] for side in ("float", "int8"))
    assert plain(line).endswith(
        f", {slower:.1f}× slower at batch 32 ({milliseconds(float_ms)} → {milliseconds(int8_ms)})."
    )


@pytest.mark.parametrize(
    ("gate", "told"),
    [
        ({"size_ratio": 4.0}, "Against the same network in float32: 4.0× smaller."),
        ({"size_ratio": 0.25, "runtime": "rt"}, "Against the same network in float32 in rt: 4.0× larger."),
        (
            {"size_ratio": 1.04, "speedup_batch_1": 0.96},
            "Against the same network in float32: as large, as fast at batch 1.",
        ),
        ({"speedup_batch_32": 2.0}, "Against the same network in float32: 2.0× faster at batch 32."),
        ({"warnings": []}, None),
    ],
)
def test_what_is_known_of_int8_alone_is_said(gate, told):
    assert said(int8_vs_float({"gate": gate})) == told


def test_files_stand_side_by_side_in_the_order_of_the_targets():
    targets = dict(reversed([*make_targets().items(), ("own", make_targets()["onnx"])]))
    found = runtimes(make_scores() | {"targets": targets})
    keys = ["onnx", "openvino", "litert", "own"]
    assert [(f.name, f.file, f.runtime) for f in found.targets] == [
        (TARGETS[k].title if k in TARGETS else k, targets[k]["file"], targets[k]["runtime"]) for k in keys
    ]
    assert found.missing == [(TARGETS["executorch"].title, targets["executorch"]["missing"])]
    rows = {label: [plain(cell) for cell in cells] for label, cells in reversed(found.rows)}
    assert rows["Accuracy"] == [percent(targets[k]["accuracy"]) for k in keys]
    assert rows["Same answers as ONNX"] == [percent(targets[k]["agreement"]) for k in keys]
    assert rows["Differ from PyTorch"] == [f"{targets[k]['flips']} of 2,000" for k in keys]
    assert rows["Size"] == [amount(targets[k]["bytes"], "B") for k in keys]
    assert rows["90th percentile"] == [milliseconds(targets[k]["latency_ms"]["batch_1"]["p90"]) for k in keys]
    assert [label for label, _ in found.rows].count("90th percentile") == 2


def test_what_one_file_lacks_is_a_dash_and_what_all_lack_is_no_row():
    targets = make_targets()
    del targets["onnx"]["flips"], targets["onnx"]["bytes"], targets["litert"]["bytes"], targets["openvino"]["bytes"]
    rows = dict(runtimes(make_scores() | {"targets": targets}).rows)
    assert [plain(cell) for cell in rows["Differ from PyTorch"]] == ["–", "3 of 2,000", "7 of 2,000"]
    assert "Size" not in rows


def test_warnings_are_one_line_each():
    assert warnings_of({"gate": {"warnings": ["larger\n  than", "slow"]}}) == ["larger than", "slow"]


def test_the_file_is_read_where_there_is_one(tmp_path):
    assert read_compression(tmp_path) == {}
    (tmp_path / "student").mkdir()
    path = tmp_path / "student" / "compression.json"
    path.write_text(json.dumps(make_compression()))
    assert read_compression(tmp_path) == make_compression()
    path.write_text("{")
    with pytest.raises(UserError, match="lighten shrink"):
        read_compression(tmp_path)
