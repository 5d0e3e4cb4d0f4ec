"""The main job as its user runs it, and what it promises. Speed is printed, and decides nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lighten
from lighten.data import build_data
from lighten.pruning import Plan, mask_, shrink
from lighten.quantization import convert

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "train.py", "recipe=distil_cnn", f"runs={runs}", "id=one"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    print(done.stdout[-2500:])
    return runs / "distil_cnn" / "one"


@pytest.fixture(scope="module")
def scores(folder):
    return json.loads((folder / "scores.json").read_text())


@pytest.fixture(scope="module")
def images():
    data = build_data("fashion_mnist")
    data.prepare_data()
    data.setup("test")
    return torch.cat([x for x, _ in data.test_dataloader()])


def test_the_teacher_is_honest_and_the_student_keeps_up(scores):
    assert scores["models"]["teacher"]["accuracy"] > 0.88
    assert scores["comparison"]["retention"] >= 0.98


def test_the_file_is_small(scores):
    assert scores["comparison"]["size_ratio"] >= 10
    assert scores["comparison"]["mac_ratio"] >= 6


def test_the_runtime_answers_as_pytorch_does(scores):
    assert scores["comparison"]["flips_of"] == 2000
    assert scores["comparison"]["flips"] <= 3


def test_the_exported_graph_is_bit_equal_to_the_trained_model(folder, images):
    model = lighten.load(folder / "student")
    program = torch.export.export(convert(model), (images[:100],), strict=False).module()
    assert len(images) == 2000
    with torch.no_grad():
        for batch in images.split(100):
            assert torch.equal(program(batch), model(batch))


def test_what_was_masked_and_what_was_cut_agree(folder, images):
    dense, plan = lighten.load(folder / "dense"), Plan.from_json((folder / "plan.json").read_text())
    small = shrink(dense, plan)
    mask_(dense, plan)
    with torch.no_grad():
        assert (dense(images) - small(images)).abs().max() <= 1e-5
        assert (dense.double()(images.double()) - small.double()(images.double())).abs().max() <= 1e-12
