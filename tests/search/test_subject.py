"""Networks of other tasks and kinds of batches, from a look at them to a trial."""

import json

import lightning as L
import pytest
import torch
from search_nets import Blobs, Net, trained
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

from lighten import UserError, compress
from lighten.distillation.callback import Distill
from lighten.search.splits import splits_of
from lighten.search.subject import subject_of


class Rows(L.LightningDataModule):
    """Numbers in, a number out; no test part."""

    task = "regression"

    def _loader(self, seed, samples):
        draw = torch.Generator().manual_seed(seed)
        x = torch.randn(samples, 6, generator=draw)
        return DataLoader(TensorDataset(x, (x[:, :2].sum(1) + x[:, 2].square())[:, None]), batch_size=50)

    def train_dataloader(self):
        return self._loader(0, 500)

    def val_dataloader(self):
        return self._loader(1, 300)


class Sentences(Dataset):
    """Tokens of which a class occurs, as dicts."""

    def __init__(self, seed, samples):
        draw = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(8, 30, (samples, 7), generator=draw)
        self.labels = torch.randint(0, 3, (samples,), generator=draw)
        self.ids[:, 3] = self.labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "attention_mask": torch.ones_like(self.ids[i]), "labels": self.labels[i]}


class Texts(L.LightningDataModule):
    """Batches of sentences."""

    task = "classification"

    def train_dataloader(self):
        return DataLoader(Sentences(0, 240), batch_size=40)

    def val_dataloader(self):
        return DataLoader(Sentences(1, 120), batch_size=40)

    def test_dataloader(self):
        return DataLoader(Sentences(2, 120), batch_size=40)


def fitted(net, batches, loss):
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(15):
        for batch in batches:
            optimizer.zero_grad()
            loss(net.train(), batch).backward()
            optimizer.step()
    return net.eval()


def bert():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=24, num_labels=3,
        max_position_embeddings=7, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def rows_of(folder):
    return json.loads((folder / "search.json").read_text())


def test_regression_without_a_test_part(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    fitted(net, Rows().train_dataloader(), lambda net, batch: (net(batch[0]) - batch[1]).square().mean())
    result = compress(
        net, Rows(), target={"parameters": "40%"}, budget="1 epoch", folder=tmp_path, on_progress=lambda line: None
    )
    state = rows_of(tmp_path)
    assert state["splits"] == {"train": 500, "guide": 50, "select": 125, "confirm": 125}
    assert (state["look"]["kind"], state["metric"]) == ("dense", state["task"]["metric"])
    assert result.met
    assert state["original"]["parameters"] == sum(p.numel() for p in net.parameters())
    assert sum(p.numel() for p in result.model.parameters()) <= 0.4 * state["original"]["parameters"]
    assert state["trials"][1]["setting"]["target"] == "parameters"
    assert state["trials"][1]["setting"]["amount"] == pytest.approx(0.6, abs=0.02)


@pytest.mark.slow
def test_text(tmp_path):
    loss = lambda net, batch: nn.functional.cross_entropy(net(batch["input_ids"]).logits, batch["labels"])  # noqa: E731
    net = fitted(bert(), Texts().train_dataloader(), loss)
    result = compress(net, Texts(), max_drop=0.5, budget="1 epoch", folder=tmp_path, on_progress=lambda line: None)
    state = rows_of(tmp_path)
    assert state["look"]["kind"] == "transformer"
    assert [row["state"] for row in state["trials"]][:2] == ["complete", "complete"]
    assert state["trials"][1]["setting"]["lr"] == 1e-4
    assert state["trials"][1]["measured"]["macs"] < state["original"]["macs"]
    assert result.path.exists()


class Own(L.LightningModule):
    """Trains its backbone and head, with its own loss and rate."""

    def __init__(self):
        super().__init__()
        self.backbone = Net()

    def training_step(self, batch, batch_idx):
        return 2 * nn.functional.cross_entropy(self.backbone(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("loss", nn.functional.cross_entropy(self.backbone(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.123)


def test_own_module_keeps_its_step_and_the_original_teaches():
    own, data = Own(), Blobs()
    subject = subject_of(own, data, splits_of(data))
    assert subject.part == "backbone"
    assert subject.task.name == "classification"
    assert sum(len(args[0]) for args, _ in subject.calls) == 40
    student = Net()
    module, part, (distill,) = subject.learner(student, lr=1.0, distil=True)
    assert type(module) is Own
    assert module is not own
    assert module.get_submodule(part) is student
    assert module.configure_optimizers().param_groups[0]["lr"] == 0.123
    assert isinstance(distill, Distill)
    teacher = distill.teacher.module
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), own.backbone.parameters(), strict=True))
    assert teacher is not own.backbone


def test_network_is_left_as_it_is_and_taught_by_a_copy():
    net, data = trained(Net(), Blobs(), epochs=1).train(), Blobs()
    subject = subject_of(net, data, splits_of(data))
    assert net.training
    assert not subject.network.training
    module, part, callbacks = subject.learner(Net(), lr=0.01, distil=True)
    assert (part, callbacks) == ("student", [])
    assert module.teacher.module is not net
    assert module.optimizer.lr == 0.01
    assert not any(p.requires_grad for p in module.teacher.module.parameters())
    assert all(p.requires_grad for p in subject.network.parameters())


def test_calibration_is_the_guide_part_in_order():
    data = Blobs()
    splits = splits_of(data)
    subject = subject_of(Net(), data, splits)
    given = torch.cat([args[0] for args, _ in subject.calls])
    assert torch.equal(given, torch.cat([x for x, _ in splits.guide]))
    assert subject.example[0].shape == (2, 1, 8, 8)


def test_batches_that_nobody_can_read_are_refused():
    class Triples(Blobs):
        def _loader(self, seed, samples, **options):
            return DataLoader(TensorDataset(*[torch.zeros(samples)] * 3), batch_size=40)

    data = Triples()
    with pytest.raises(UserError, match="a batch has 3 parts"):
        subject_of(Net(), data, splits_of(data))


def test_a_network_that_does_not_run_on_the_data_is_refused_in_a_line():
    class Colour(Blobs):
        def _loader(self, seed, samples, **options):
            pictures, labels = super()._loader(seed, samples).dataset.tensors
            return DataLoader(TensorDataset(pictures.repeat(1, 3, 1, 1), labels), batch_size=40)

    data = Colour()
    with pytest.raises(UserError, match=r"the model Net does not run on the data: .* to have 1 channels, but got 3"):
        subject_of(Net(), data, splits_of(data))
    with pytest.raises(UserError, match=r"does not run on the data: .*; give .*, and weights in float32"):
        subject_of(Net().bfloat16(), Blobs(), splits_of(Blobs()))


def test_a_network_that_was_frozen_for_use_is_trained_and_one_frozen_in_part_stays_so():
    frozen = Net().requires_grad_(False)
    assert all(p.requires_grad for p in subject_of(frozen, Blobs(), splits_of(Blobs())).network.parameters())
    assert not any(p.requires_grad for p in frozen.parameters())
    part = Net()
    part.first.requires_grad_(False)
    found = subject_of(part, Blobs(), splits_of(Blobs())).network
    assert [p.requires_grad for p in found.first.parameters()] == [False, False]
    assert found.head.weight.requires_grad


class Hooked(Blobs):
    def __init__(self, hook):
        super().__init__()
        self.hook = hook

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return self.hook(self, batch)


def test_a_data_module_that_changes_what_is_evaluated_is_refused():
    scaled = Hooked(lambda data, batch: (batch[0] / 10, batch[1]))
    with pytest.raises(UserError, match=r"Hooked.on_after_batch_transfer changes the batches that are eval"):
        subject_of(Net(), scaled, splits_of(scaled))
    for hook in (lambda data, batch: batch, lambda data, batch: batch if data.trainer.training else None):
        subject_of(Net(), Hooked(hook), splits_of(Hooked(hook)))


def test_a_module_without_validation_and_batches_without_labels_are_refused_in_a_line():
    class Lone(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()

    with pytest.raises(UserError, match="Lone has no validation_step, by which compress sees"):
        subject_of(Lone(), Blobs(), splits_of(Blobs()))

    class Named(Blobs):
        def _loader(self, seed, samples, **options):
            pictures, labels = super()._loader(seed, samples).dataset.tensors
            rows = [dict(zip(self.names, row, strict=True)) for row in zip(pictures, labels, strict=True)]
            return DataLoader(rows, batch_size=40)

    data = Named()
    for label, says in (("target", "it has 'image', 'target'; let"), ("labels", "gives it 'pixels'; let the data set")):
        data.names = ("image" if label == "target" else "pixels", label)
        with pytest.raises(UserError, match=says) as caught:
            subject_of(Net(), data, splits_of(data))
        assert "batch=" not in str(caught.value)  # there is no such argument
