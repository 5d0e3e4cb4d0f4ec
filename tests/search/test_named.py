"""A LightningModule of somebody's own: its training step, its metric by name and direction."""

import json
from dataclasses import dataclass

import lightning as L
import numpy as np
import onnxruntime
import pytest
import torch
from search_nets import Blobs, Net, trained
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lighten import UserError, compress, export
from lighten.search.named import ByName
from lighten.search.needs import Needs
from lighten.search.splits import splits_of
from lighten.search.subject import subject_of


class Triples(Blobs):
    """Batches of three parts, which nobody but the module below can read."""

    task = None

    def _loader(self, seed, samples, **options):
        pictures, labels = super()._loader(seed, samples).dataset.tensors
        return DataLoader(TensorDataset(labels, pictures, torch.ones(samples)), batch_size=40, **options)


class Own(L.LightningModule):
    """Calls its network in a step of its own, and logs an error that is to be small."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.steps = net, 0

    def training_step(self, batch, batch_idx):
        labels, pictures, _ = batch
        self.steps += 1
        return nn.functional.cross_entropy(self.net(pictures), labels)

    def validation_step(self, batch, batch_idx):
        labels, pictures, _ = batch
        self.log("val_error", (self.net(pictures).argmax(-1) != labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return trained(Net(), Blobs(), epochs=4)


def test_own_module_is_searched_by_its_own_metric(net, tmp_path):
    module = Own(net)
    result = compress(
        module, Triples(), max_drop=0.9, budget="4 epochs", folder=tmp_path, metric=("val_error", "min"), module="net",
        on_progress=lambda line: None,
    )  # fmt: skip
    state = json.loads((tmp_path / "search.json").read_text())
    assert module.steps == 0
    assert (state["metric"], state["lower_is_better"]) == ("val_error", True)
    assert [row["setting"]["quantize"] for row in state["trials"]][:2] == ["static", "qat"]
    assert state["trials"][1]["state"] == "complete"
    labels, pictures, _ = Triples().test_dataloader().dataset.tensors

    def error(file):
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return float((np.argmax(session.run(None, {"input": pictures.numpy()})[0], -1) != labels.numpy()).mean())

    assert result.scores["models"]["compressed"]["val_error"] == pytest.approx(error(result.path))
    assert result.scores["models"]["student"]["val_error"] == pytest.approx(error(tmp_path / "original.onnx"))
    assert isinstance(result.model, Net)


def quality_of(net, metric="val_error"):
    data = Triples()
    splits = splits_of(data)
    subject = subject_of(Own(net), data, splits, module="net", logged=metric)
    return ByName(subject, data, splits, metric, lower_is_better=True), subject, splits


def test_untrained_module_is_refused():
    torch.manual_seed(1)
    quality, subject, splits = quality_of(Net())
    with pytest.raises(UserError, match="is not trained: its val_error"):
        quality.check_trained(subject, splits)


def test_metric_that_is_not_logged_is_named(net):
    quality, subject, splits = quality_of(net, "val_acc")
    with pytest.raises(UserError, match="does not log it, it logs val_error"):
        quality.check_trained(subject, splits)


@pytest.mark.parametrize(
    ("lower", "pair", "drop"), [(False, (0.9, 0.8), 0.1), (False, (40, 30), 0.25), (True, (1, 2), 0.5)]
)
def test_drop(lower, pair, drop):
    quality = ByName(None, None, None, "any", lower_is_better=lower)
    assert quality.drop(*pair) == pytest.approx(drop)


@dataclass
class Answer:
    """As networks of ``transformers`` answer: a loss where there are labels, and more than one tensor."""

    logits: torch.Tensor
    loss: torch.Tensor | None = None
    features: list[torch.Tensor] | None = None


class Wrapped(nn.Module):
    """Computes its own loss."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels, labels=None):
        logits = self.net(pixels)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return Answer(logits, loss, [logits.softmax(-1)])


class WithLabels(Own):
    """Gives its network the labels, and reads more than one thing of what it answers."""

    def __init__(self, net: nn.Module, positional: bool) -> None:
        super().__init__(Wrapped(net))
        self.positional = positional

    def validation_step(self, batch, batch_idx):
        labels, pictures, _ = batch
        answer = self.net(pictures, labels) if self.positional else self.net(pixels=pictures, labels=labels)
        wrong = (answer.features[0].argmax(-1) != labels).float().mean()
        self.log("val_error", wrong)
        self.log("val_loss", answer.loss)


@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("metric", ["val_error", "val_loss"])
def test_a_file_answers_in_the_networks_own_form_and_takes_no_labels(net, tmp_path, metric, positional):
    module, data = WithLabels(net, positional), Triples()
    splits = splits_of(data)
    subject = subject_of(module, data, splits, module="net", logged=metric)
    assert {len(args) + len(kwargs) for args, kwargs in subject.calls} == {1}
    file = export(subject.network, subject.example, tmp_path / "original.onnx")
    assert [each.name for each in onnxruntime.InferenceSession(file).get_inputs()] == [
        "input" if positional else "pixels"
    ]
    quality = ByName(subject, data, splits, metric, lower_is_better=True)
    if metric == "val_loss":
        with pytest.raises(UserError, match="has no loss that the network computes from labels"):
            quality.original(file, splits, Needs(max_drop=0.5))
        return
    found = quality.original(file, splits, Needs(max_drop=0.5))
    with torch.no_grad():
        wrong = torch.cat([net(pictures).argmax(-1) != labels for labels, pictures, _ in splits.select])
    assert found["metric"] == pytest.approx(float(wrong.float().mean()))
