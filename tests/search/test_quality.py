"""Quality of files by a task: metric, drop, and what is reckoned with."""

import math

import pytest
import torch
from search_nets import Blobs, Net, trained
from torch import nn

from lighten import UserError, export_onnx
from lighten.search.confirm import Confirmation, safe_drop
from lighten.search.needs import Needs
from lighten.search.quality import ByTask, latency_sizes, reckoned
from lighten.search.splits import splits_of
from lighten.search.subject import subject_of
from lighten.tasks import task_of

QUALITY = ByTask(task_of("classification"))


class Constant(nn.Module):
    """Answers the first class to everything."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([1.0, 0, 0, 0]))

    def forward(self, image):
        return self.bias.expand(len(image), 4) + 0 * image.flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize("net", [Net, Constant])
def test_what_knows_nothing_is_refused(net):
    torch.manual_seed(0)
    data = Blobs()
    splits = splits_of(data)
    with pytest.raises(UserError, match="the model is not trained: its accuracy is"):
        QUALITY.check_trained(subject_of(net(), data, splits), splits)


def test_what_has_learned_a_little_is_not(monkeypatch):
    torch.manual_seed(0)
    data = Blobs(noise=1.5)
    splits = splits_of(data)
    net = trained(Net(), data, epochs=3)
    QUALITY.check_trained(subject_of(net, data, splits), splits)


def test_measured_are_both_files_on_the_same_samples(tmp_path):
    torch.manual_seed(0)
    data = Blobs(noise=1.5)
    splits = splits_of(data)
    nets = {"one": trained(Net(), data, epochs=6), "other": trained(Net(4), data, epochs=1)}
    files = {name: export_onnx(net, torch.zeros(2, 1, 8, 8), tmp_path / f"{name}.onnx") for name, net in nets.items()}
    found = QUALITY.measure(tmp_path, files["one"], files["other"], splits.select, Needs(max_drop=0.1), confirming=200)

    def accuracy(net):
        with torch.no_grad():
            return torch.cat([net(x).argmax(-1) == y for x, y in splits.select]).float().mean().item()

    before, after = (accuracy(net) for net in nets.values())
    assert found["metric"] == pytest.approx(after, abs=1e-6)
    assert found["drop"] == pytest.approx(before - after, abs=1e-6)
    assert found["drop"] < found["expected"] < found["bound"]
    assert found["bytes"] == files["other"].stat().st_size
    assert found["macs"] == 64 * 9 * 4 * (1 + 4) + 4 * 4 * 4


def test_reckoned_shrinks_with_the_samples_that_confirm():
    found = Confirmation(0.01, 0.03, 400, 0.95, "any")
    few, many = reckoned(found, 100), reckoned(found, 40000)
    assert few["expected"] == pytest.approx(0.01 + 0.02 * 2)
    assert many["expected"] == pytest.approx(0.01 + 0.02 / 10)
    assert few["bound"] == safe_drop(found, 100) > many["bound"] > 0.03
    assert math.isclose(few["drop"], 0.01)


def test_latency_is_of_the_batch_that_is_asked_for():
    assert latency_sizes(Needs(batch=8)) == [1, 8, 32]
