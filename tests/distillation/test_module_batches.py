"""What batches and outputs of other people's fits hold, in a DistillationModule."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lighten.distillation.module import DistillationModule
from lighten.distillation.tokens import shifted
from lighten.errors import UserError
from lighten.training.optimizer import OptimizerSettings

draw = torch.Generator().manual_seed(0)
X, Z = torch.randn(24, 6, generator=draw), torch.randn(24, 5, generator=draw)
Y, W = torch.arange(24) % 3, torch.rand(24, generator=draw)
STILL = OptimizerSettings(name="sgd", lr=1e-12, momentum=0.0, nesterov=False, weight_decay=0.0)


def fit(module, *data, **settings):
    loader = DataLoader(TensorDataset(*data) if isinstance(data[0], torch.Tensor) else data[0], 24)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = L.Trainer(
        **{"max_epochs": 1, "accelerator": "cpu", "logger": False, "log_every_n_steps": 1, **quiet, **settings}
    )
    trainer.fit(module, loader, loader)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 3), nn.Linear(5, 3)

    def forward(self, x, z):
        return self.a(x) + self.b(z)


class Heads(nn.Module):
    def __init__(self, named: bool) -> None:
        super().__init__()
        self.kind, self.box, self.named = nn.Linear(6, 3), nn.Linear(6, 2), named

    def forward(self, x):
        kind, box = self.kind(x), self.box(x)
        return {"box": box, "kind": kind} if self.named else (box, kind)


def test_roles_give_a_model_of_two_inputs_both():
    model = Sum()
    expected = F.cross_entropy(model(X, Z), Y).item()
    found = fit(DistillationModule(model, batch=("input", "input", "label"), optimizer=STILL), X, Z, Y)
    assert found["train/loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("teacher", [False, True])
def test_weights_multiply_the_losses_of_samples(teacher):
    model, other = nn.Linear(6, 3), nn.Linear(6, 3)
    hard = F.cross_entropy(model(X), Y, reduction="none")
    kl = F.kl_div((model(X) / 4).log_softmax(1), (other(X) / 4).softmax(1), reduction="none").sum(1) * 16
    expected = (W * (0.9 * kl + 0.1 * hard) if teacher else W * hard).mean().item()
    module = DistillationModule(model, other if teacher else None, batch=("input", "label", "weight"), optimizer=STILL)
    assert fit(module, X, Y, W)["train/loss"] == pytest.approx(expected, rel=1e-5)


def test_weights_of_zero_teach_nothing():
    assert fit(DistillationModule(nn.Linear(6, 3), batch=("input", "label", "weight")), X, Y, 0 * W)["train/loss"] == 0


def test_weights_and_a_loss_that_couples_samples_are_refused():
    with pytest.raises(UserError, match="'dist'"):
        DistillationModule(nn.Linear(6, 3), nn.Linear(6, 3), losses={"dist": 1}, batch=("input", "label", "weight"))


def test_three_parts_that_nothing_names_are_refused():
    with pytest.raises(UserError, match="nothing says what they are"):
        fit(DistillationModule(nn.Linear(6, 3)), X, Y, W)


def test_a_mapping_may_have_its_labels_under_another_name():
    rows = [{"image": x, "target": y} for x, y in zip(X, Y, strict=True)]
    with pytest.raises(UserError, match=r'batch=\{"target": "label"\}'):
        fit(DistillationModule(nn.Linear(6, 3)), rows)
    module = DistillationModule(nn.Linear(6, 3), batch={"image": "input", "target": "label"})
    assert 0 <= fit(module, rows)["student/accuracy"] <= 1


@pytest.mark.parametrize(("named", "outputs"), [(True, "kind"), (True, 1), (False, 1)])
def test_the_output_that_is_named_is_trained(named, outputs):
    model = Heads(named)
    expected = F.cross_entropy(model.kind(X), Y).item()
    found = fit(DistillationModule(model, optimizer=STILL, outputs=outputs), X, Y)
    assert found["train/loss"] == pytest.approx(expected, rel=1e-5)


def test_a_teacher_has_its_own_outputs():
    student, teacher = Heads(True), Heads(False)
    module = DistillationModule(student, teacher, outputs="kind", teacher_outputs=1, optimizer=STILL, soft_weight=1.0)
    kl = F.kl_div((student.kind(X) / 4).log_softmax(1), (teacher.kind(X) / 4).softmax(1), reduction="batchmean") * 16
    assert fit(module, X, Y)["train/loss"] == pytest.approx(kl.item(), rel=1e-5)
    with pytest.raises(UserError, match="teacher_outputs"):
        fit(DistillationModule(nn.Linear(6, 3), Heads(False)), X, Y)


@pytest.mark.parametrize("named", [True, False])
def test_several_outputs_that_nothing_names_are_refused(named):
    with pytest.raises(UserError, match="outputs="):
        fit(DistillationModule(Heads(named)), X, Y)


def test_inputs_alone_are_predicted():
    module = DistillationModule(nn.Linear(6, 3))
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    (found,) = trainer.predict(module, DataLoader(TensorDataset(X), 24))
    assert torch.equal(found, module.student(X))


@pytest.mark.parametrize("sanity", [0, 1])
def test_validation_without_one_label_is_refused(sanity):
    with pytest.raises(UserError, match="every label of the validation data is -100"):
        fit(DistillationModule(nn.Linear(6, 3)), X, torch.full_like(Y, -100), num_sanity_val_steps=sanity)


class CausalWords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

    def forward(self, input_ids):
        return self.head(self.table(input_ids).cumsum(1))


def test_a_causal_language_model_learns_the_next_token_and_no_copy():
    ids = torch.randint(0, 20, (24, 6), generator=draw)
    model = CausalWords()
    expected = F.cross_entropy(model(ids).transpose(1, 2), shifted(ids)).item()
    rows = [{"input_ids": row, "labels": row} for row in ids]
    found = fit(DistillationModule(model, task="masked_lm", optimizer=STILL), rows)
    assert found["train/loss"] == pytest.approx(expected, rel=1e-5)
    assert found["student/loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging", "ignore:SWA is currently only supported")
@pytest.mark.parametrize("average", [EMAWeightAveraging, lambda: StochasticWeightAveraging(1e-3, 1)])
def test_projections_are_there_for_a_callback_that_copies_the_module(average):
    student, teacher = (nn.Sequential(nn.Linear(6, w), nn.ReLU(), nn.Linear(w, 3)) for w in (4, 8))
    module = DistillationModule(student, teacher, losses={"hint": 1.0}, layers={"1": "1"})
    fit(module, X, Y, max_epochs=3, callbacks=[average()])
    (projection,) = module.projections.values()
    assert projection.weight.shape == (8, 4)
