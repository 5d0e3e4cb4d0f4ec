"""Fits of other tasks than classes, logits that are not finite, and samples without a label."""

import pytest
import torch
from distillation_nets import images, resnet, texts
from torch import nn
from torch.utils.data import DataLoader
from transformers import BertConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from lighten.distillation.callback import Distill
from lighten.distillation.module import DistillationModule
from lighten.errors import UserError


@pytest.mark.parametrize(
    ("task", "labels", "logged"),
    [
        ("multilabel", lambda i: torch.tensor([i % 2, i % 3 == 0, 1.0, 0.0]), "student/macro_f1"),
        ("regression", lambda i: torch.tensor([i / 10, 1.0, -1.0, i / 5]), "student/pearson"),
    ],
)
def test_other_tasks_train_and_are_scored(fit, task, labels, logged) -> None:
    draw = torch.Generator().manual_seed(0)
    data = DataLoader([(torch.randn(6, generator=draw), labels(i).float()) for i in range(24)], 8)
    trainer = fit(DistillationModule(nn.Linear(6, 4), nn.Linear(6, 4), task=task), data, enable_checkpointing=False)
    assert logged in trainer.callback_metrics
    assert "distil/soft_labels" in trainer.callback_metrics


def test_masked_language_models_are_taught(fit) -> None:
    from transformers import BertForMaskedLM

    def model(layers: int) -> nn.Module:
        sizes = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 32, "vocab_size": 50}
        return BertForMaskedLM(BertConfig(num_hidden_layers=layers, **sizes))

    rows = []
    for batch in texts().dataset:
        labels = torch.where(torch.arange(6) == 1, batch["input_ids"], -100)
        rows.append({**batch, "labels": labels})
    losses = {"soft_labels": 5.0, "cross_entropy": 2.0, "hidden_cosine": 1.0}
    module = DistillationModule(model(1), model(2), task="masked_lm", losses=losses, temperature=2.0)
    trainer = fit(module, DataLoader(rows, 8))
    assert {"student/accuracy", "student/loss", "teacher/loss", "gap/kl"} <= set(trainer.callback_metrics)


def test_logits_that_are_not_finite_name_the_sample(fit) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = resnet(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = self.net(x)
            return torch.where(torch.arange(len(x))[:, None] == 5, torch.nan, logits)

    with pytest.raises(UserError, match="teacher's logits are not finite for sample 5 of the batch"):
        fit(DistillationModule(resnet(4), Broken()), images())


def test_logits_that_cease_to_be_finite_are_blamed(fit) -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls = resnet(4), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            logits = self.net(x)
            return torch.where(torch.arange(len(x))[:, None] == 3, torch.inf, logits) if self.calls > 2 else logits

    for student, teacher, role in ((resnet(4), Late(), "teacher"), (Late(), resnet(4), "student")):
        with pytest.raises(UserError, match=rf"at step [12] .*the {role}'s logits are not finite for sample 3"):
            fit(DistillationModule(student, teacher), images())


def test_samples_without_a_label_count_nowhere(fit) -> None:
    rows = [(x, y if i % 3 else -100) for i, (x, y) in enumerate(images().dataset)]
    losses = {"dkd": 1.0, "cross_entropy": 1.0}
    trainer = fit(DistillationModule(resnet(4), resnet(8), losses=losses), DataLoader(rows, 8))
    assert trainer.callback_metrics["student/loss"].isfinite()
    nothing = DataLoader([(x, -100) for x, _ in rows], 8)
    module = DistillationModule(resnet(4), resnet(8), losses=losses)
    settings = {"limit_val_batches": 0, "enable_checkpointing": False}
    assert fit(module, nothing, **settings).callback_metrics["distil/dkd"] == 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"losses": {"dkd": 1.0}, "loss_options": {"dkd": {"betta": 2.0}}}, "did you mean 'beta'"),
        ({"losses": {"dkd": 1.0}, "loss_options": {"dkd": 2.0}}, r"loss_options.dkd=2.0, expected keywords"),
        ({"loss_options": {"dkdd": {"beta": 2.0}}}, "takes no part"),
        ({"loss_options": {"soft_labels": {"x": 1}}}, "has no 'x'; it has no options"),
        ({"losses": {"hint": 1.0}, "layers": {}}, r"layers=\{\}: expected 'uniform'"),
        ({"losses": {"hint": 1.0}, "layers": 3}, "layers=3: expected 'uniform'"),
        ({"losses": {"hint": 1.0}, "layers": {0: 1}}, "layers has 0: 1, expected names"),
        ({"soft_weight": {"from": 1.0, "to": 0.0}}, "weights over time belong to losses"),
        ({"temperature": {"from": 4.0, "to": 1.0, "begin": None}}, "temperature.begin=None, expected a finite number"),
        ({"temperature": {"from": {"from": 1.0, "to": 2.0}, "to": 1.0}}, "temperature.from="),
    ],
)
def test_settings_of_losses_and_layers_are_checked_at_once(settings, told) -> None:
    with pytest.raises(UserError, match=told):
        DistillationModule(resnet(4), resnet(8), **settings)


def test_detectors_are_taught_by_teachers_of_other_places(fit) -> None:
    """A set by a set of more queries, one stage by one of another grid, either by the other, and necks by hints."""
    from toy_boxes import Points, Queries, loader

    from lighten.tasks import build_task

    stage, as_set = build_task("detection", matches=4, nms=0.5), build_task("detection")
    hint = {"losses": {"labels": 1.0, "soft_labels": 1.0, "hint": 1.0}, "layers": {"body.5": "body.5"}}
    for task, student, teacher, settings in (
        (as_set, Queries(4), Queries(9, seed=1), {}),
        (as_set, Queries(4), Points(seed=1), {}),
        (stage, Points(8), Points(16, seed=1), hint),
        (stage, Points(8, stride=8), Points(16, seed=1), {}),
        (stage, Points(8), Queries(9, seed=1), {}),
    ):
        module = DistillationModule(student, teacher, task=task, num_classes=2, **settings)
        found = fit(module, loader(16, 8), enable_checkpointing=False).callback_metrics
        assert {"student/map", "teacher/map_50", "gap/map", "gap/agreement", "gap/retention"} <= set(found)
        losses = {"distil/soft_labels", "distil/labels"} | ({"distil/hint"} if settings else set())
        assert losses <= set(found)
        assert all(found[name].isfinite() for name in losses)


class Lossy(nn.Module):
    """Classes, and with labels a loss of its own: three times the cross-entropy."""

    def __init__(self, returned=dict) -> None:
        super().__init__()
        self.net, self.returned = nn.Linear(6, 4), returned

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None):
        logits = self.net(x)
        if labels is None:
            return logits
        loss = 3 * nn.functional.cross_entropy(logits, labels)
        return self.returned(loss=loss, logits=logits) if self.returned else logits


def test_a_network_may_bring_a_loss_of_its_own(fit) -> None:
    draw = torch.Generator().manual_seed(0)
    data = DataLoader([(torch.randn(6, generator=draw), i % 4) for i in range(24)], 24)
    for returned in (dict, SequenceClassifierOutput):
        losses = {"own": 0.5, "cross_entropy": 1.0, "soft_labels": 1.0}
        module = DistillationModule(Lossy(returned), nn.Linear(6, 4), losses=losses)
        found = fit(module, data, enable_checkpointing=False).callback_metrics
        assert found["distil/own"].item() == pytest.approx(3 * found["distil/cross_entropy"].item(), rel=1e-5)
        assert "student/accuracy" in found
    for student, says in ((Lossy(None), "Lossy returns no loss"), (nn.Linear(6, 4), "Linear takes no labels")):
        with pytest.raises(UserError, match=f"losses has 'own', and {says}"):
            fit(DistillationModule(student, losses={"own": 1.0}), data, enable_checkpointing=False)
    with pytest.raises(UserError, match="losses has 'own', which a step of one's own adds up itself"):
        Distill(nn.Linear(6, 4), losses={"own": 1.0})


def test_the_temperature_is_the_tasks_and_several_detectors_are_no_teacher() -> None:
    from toy_boxes import Points

    assert DistillationModule(Points(), Points(), task="detection").hparams["temperature"] == 1.0
    assert DistillationModule(nn.Linear(6, 4), nn.Linear(6, 4)).hparams["temperature"] == 4.0
    with pytest.raises(UserError, match="2 teachers: of task='detection' the same place of two means other things"):
        DistillationModule(Points(), [Points(), Points()], task="detection")
