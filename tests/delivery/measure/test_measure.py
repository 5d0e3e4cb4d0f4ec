"""Measuring one model; a whole run is measured in tests/test_run.py."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from lighten.delivery.export.targets import export_onnx
from lighten.delivery.measure.measure import measure, predict
from lighten.errors import UserError


def identity():
    """Return a classifier whose logits are its input."""
    model = nn.Linear(3, 3, bias=False)
    model.weight.data.copy_(torch.eye(3))
    return model


def batches(sizes=(4, 3), labels=(0, 1, 2, 0, 1, 2, 2)):
    """Return batches of one-hot inputs: class i % 3, so that ``labels`` decides what is right."""
    x = torch.eye(3)[torch.arange(sum(sizes)) % 3]
    return list(zip(x.split(list(sizes)), torch.tensor(labels).split(list(sizes)), strict=True))


@pytest.mark.parametrize("kind", ["module", "file"])
def test_quality_is_over_all_samples_of_all_batches(tmp_path, kind):
    model = identity()
    target = model if kind == "module" else export_onnx(model, torch.zeros(1, 3), tmp_path / "m.onnx")
    scores = measure(target, batches(), batch_sizes=(1, 2))
    assert scores["accuracy"] == pytest.approx(6 / 7)
    assert scores["macro_f1"] == pytest.approx((0.8 + 1 + 0.8) / 3)
    assert (scores["parameters"], scores["macs"], scores["threads"]) == (9, 9, 1)
    assert scores["runtime"] == {"module": "pytorch", "file": "onnxruntime"}[kind]
    assert scores["bytes"] == (36 if kind == "module" else target.stat().st_size)
    assert set(scores["latency_ms"]) == {"batch_1", "batch_2"}
    assert all(0 < entry["median"] <= entry["p90"] for entry in scores["latency_ms"].values())
    json.dumps(scores, allow_nan=False)


def test_mappings_are_called_by_keyword():
    class Named(nn.Module):
        def forward(self, pixels, scale):
            return {"logits": pixels * scale}

    data = [{"pixels": torch.eye(3), "scale": torch.ones(3, 1), "labels": torch.arange(3)}]
    logits, labels = predict(Named(), data)
    assert np.array_equal(logits, np.eye(3))
    assert labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "no data to measure on"),
        ([torch.eye(3)], "a batch without labels"),
        ([(torch.eye(3), torch.arange(3), torch.ones(3))], "nothing says what they are"),
        ([{"input": torch.eye(3), "target": torch.arange(3)}], "'input', 'target'; name them"),
        ([(torch.eye(3), torch.eye(3))], r"labels have shape \(3, 3\), expected \(batch,\)"),
        ([(torch.eye(3), torch.ones(3, 3).long())], r"labels have shape \(3, 3\), expected \(batch,\)"),
        ([(torch.ones(3, 2, 3), torch.arange(3))], r"logits of shape \(3, 2, 3\)"),
        ([(torch.eye(3).numpy(), torch.arange(3))], "NumPy array"),
        (batches(labels=(0, 1, 3, 0, 1, 2, 2)), "answers 3 classes, but there is a label 3, expected 0 to 2"),
        ([(torch.full((2, 3), torch.nan), torch.zeros(2, dtype=torch.long))], "its logits hold NaN or infinity"),
    ],
    ids=[
        "empty",
        "unlabelled",
        "unnamed",
        "otherwise named",
        "one-hot",
        "dense",
        "dense logits",
        "array",
        "foreign",
        "nan",
    ],
)
def test_data_that_cannot_be_measured_on_say_so_in_one_line(data, says):
    with pytest.raises(UserError, match=says) as caught:
        measure(identity(), data)
    assert "\n" not in str(caught.value)


def test_data_are_read_once_so_that_a_generator_will_do():
    assert measure(identity(), (batch for batch in batches()), batch_sizes=[1])["accuracy"] == pytest.approx(6 / 7)


def test_roles_say_what_the_parts_of_a_batch_are():
    class Shifted(nn.Module):
        def forward(self, x, shift=None):
            return x if shift is None else x.roll(1, 1)

    x, other, labels = torch.eye(3), torch.zeros(3, dtype=torch.int64), torch.arange(3)
    roles = ("input", "ignore", "label")
    assert measure(Shifted(), [(x, other, labels)], batch=roles, batch_sizes=[1])["accuracy"] == 1.0
    roles = ("input", "input", "label")
    assert measure(Shifted(), [(x, other, labels)], batch=roles, batch_sizes=[1])["accuracy"] == 0.0
    named = {"target": "label", "image": "input"}
    assert measure(identity(), [{"image": x, "target": labels}], batch=named, batch_sizes=[1])["accuracy"] == 1.0


def test_logits_are_compared_with_the_network_not_only_classes(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    path = export_onnx(network, torch.zeros(2, 12), tmp_path / "x.onnx")
    data = [(torch.randn(5, 12), torch.arange(5) % 3) for _ in range(2)]
    assert measure(path, iter(data), network=network)["logit_error"] < 1e-5
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.8)  # the same classes
    with pytest.warns(UserWarning, match=r"x.onnx: its logits are 25.0% off those of the network in PyTorch"):
        found = measure(path, iter(data), network=network)["logit_error"]
    assert found == pytest.approx(0.25, rel=1e-4)
    assert "logit_error" not in measure(path, iter(data))
