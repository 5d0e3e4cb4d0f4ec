"""Integers where they are fast; the clock is a stand-in here, the files are real."""

import shutil

import pytest
import torch
from torch import nn

from lighten import build_model, export_onnx, load, quantize_post_training, save
from lighten.delivery.export.prepare import in_float
from lighten.delivery.folders.run import FLOAT_FILE, write_json
from lighten.delivery.folders.student import FIT
from lighten.delivery.measure import precision
from lighten.delivery.measure.precision import choose_precision, faster_form, verdict
from lighten.delivery.runtimes.runners import open_runner
from lighten.quantization.weights_alone import is_weights_alone


@pytest.fixture
def clock(monkeypatch):
    """Say how long the int8 file takes, where float32 takes a millisecond."""

    def set_to(ms):
        taken = {"float": 1.0, "int8": ms}
        monkeypatch.setattr(
            precision, "interleaved_latency",
            lambda runners, batches, seconds: {n: {b: {"median": taken[n]} for b in batches} for n in runners},
        )  # fmt: skip

    return set_to


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    model = build_model("mlp", num_classes=3, input_shape=(1, 4, 4), hidden=[8]).eval()
    small = quantize_post_training(model, [torch.randn(64, 1, 4, 4)])
    save(small, folder / "student", classes=["a", "b", "c"])
    example = torch.zeros(2, 1, 4, 4)
    export_onnx(small, example, folder / "student.onnx")
    export_onnx(in_float(small), example, folder / FLOAT_FILE)
    return folder


@pytest.fixture
def run(exported, tmp_path):
    """A run that is exported, its recipe with ``delivery.precision: auto``."""
    folder = shutil.copytree(exported, tmp_path / "run")
    write_json(folder / FIT, {"schema": 1, "targets": ["onnx"], "opset": None, "precision": "auto"})
    return folder


def answers(run, images):
    with open_runner(run / "student.onnx") as runner:
        return torch.from_numpy(runner.run(runner.feed(((images,), {}))))


def test_a_slow_int8_file_becomes_one_that_computes_in_float32(run, clock):
    images, before = torch.randn(8, 1, 4, 4), (run / "student.onnx").read_bytes()
    plain = in_float(load(run / "student"))
    clock(2.0)
    assert "int8 runs at 0.50 and 0.50 of float32's speed at batch 1 and batch 32" in choose_precision(run)
    student = load(run / "student")
    assert is_weights_alone(student)
    assert (run / "student.onnx").read_bytes() != before
    torch.testing.assert_close(answers(run, images), student(images), rtol=1e-5, atol=1e-6)
    assert not torch.equal(student(images), plain(images))  # weights are rounded all the same
    assert choose_precision(run) is None  # it is done


@pytest.mark.parametrize("change", [{}, {"precision": "int8"}, {"targets": ["onnx", "litert"]}, {"precision": None}])
def test_integers_stay_where_they_are_fast_or_asked_for(run, clock, change):
    write_json(run / FIT, {"schema": 1, "targets": ["onnx"], "opset": None, "precision": "auto", **change})
    clock(2.0 if change else 1.02)
    before = (run / "student.onnx").read_bytes()
    assert choose_precision(run) is None
    assert (run / "student.onnx").read_bytes() == before
    assert not is_weights_alone(load(run / "student"))


def test_a_network_gets_its_faster_form(tmp_path, clock):
    small = quantize_post_training(nn.Sequential(nn.Linear(4, 4)), [torch.randn(64, 4)])
    file = export_onnx(small, torch.zeros(2, 4), tmp_path / "int8.onnx")
    clock(2.0)
    faster = faster_form(small, torch.zeros(2, 4), file, batch=1, threads=1)
    assert is_weights_alone(faster)
    assert not is_weights_alone(small)
    clock(0.5)
    assert faster_form(small, torch.zeros(2, 4), file, batch=1, threads=1) is small


def test_one_batch_size_may_be_slower_where_the_other_makes_up_for_it():
    taken = {"int8": {"a": {"median": 2.0}, "b": {"median": 1.0}}, "float": {"a": {"median": 1.0}, "b": {"median": 3}}}
    assert verdict(taken) is None
