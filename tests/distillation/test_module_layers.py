"""Fits that compare layers, average teachers, or learn other tasks than classes."""

import copy

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from lighten.distillation.match import FeatureRecorder
from lighten.distillation.module import DistillationModule
from lighten.distillation.teacher import fingerprint
from lighten.errors import UserError
from lighten.models import build_model
from lighten.training.checkpoint import AtomicCheckpointIO
from lighten.training.fit import make_trainer
from lighten.training.optimizer import OptimizerSettings


@pytest.fixture
def fit(tmp_path):
    def run(module: L.LightningModule, train: DataLoader, **settings) -> L.Trainer:
        settings = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, **settings}
        settings["log_every_n_steps"] = 1
        trainer = make_trainer(folder=tmp_path, stage="student", settings=settings)
        trainer.fit(module, train, train)
        return trainer

    return run


def resnet(width: int, blocks: int = 1) -> nn.Module:
    return build_model("resnet20", num_classes=4, input_shape=(1, 8, 8), width=width, blocks=blocks)


def images() -> DataLoader:
    draw = torch.Generator().manual_seed(0)
    return DataLoader([(torch.randn(1, 8, 8, generator=draw), i % 4) for i in range(24)], 8)


def bert(layers: int, width: int = 16) -> nn.Module:
    sizes = {"hidden_size": width, "num_attention_heads": 4, "intermediate_size": 32, "vocab_size": 50}
    return BertForSequenceClassification(BertConfig(num_hidden_layers=layers, num_labels=4, **sizes))


def texts() -> DataLoader:
    draw = torch.Generator().manual_seed(0)
    rows = []
    for i in range(16):
        mask = (torch.arange(6) < 3 + i % 4).long()
        ids = torch.randint(1, 50, (6,), generator=draw) * mask
        rows.append({"input_ids": ids, "attention_mask": mask, "labels": i % 4})
    return DataLoader(rows, 8)


def test_hints_project_the_student_to_its_teachers_width(fit, tmp_path) -> None:
    student, teacher = resnet(4), resnet(8, blocks=2)
    module = DistillationModule(student, teacher, losses={"soft_labels": 1.0, "hint": 2.0, "attention_transfer": 5.0})
    before = fingerprint(teacher)
    trainer = fit(module, images(), max_epochs=2)
    assert {name: tuple(p.weight.shape) for name, p in module.projections.items()} == {
        f"stage{s}_0->stage{s}_1": (8 * 2 ** (s - 1), 4 * 2 ** (s - 1)) for s in (1, 2, 3)
    }
    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for p in module.parameters()}
    assert fingerprint(teacher) == before
    metrics = trainer.callback_metrics
    shares = [float(metrics[f"distil/share/{name}"]) for name in ("soft_labels", "hint", "attention_transfer")]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    expected = 2 * metrics["distil/hint"] / metrics["train/loss"]
    assert shares[1] == pytest.approx(float(expected), rel=1e-5)
    path = next((tmp_path / "checkpoints").glob("last-*.ckpt"))
    state = AtomicCheckpointIO().load_checkpoint(path)["state_dict"]
    assert {name.split(".")[0] for name in state} == {"student", "projections"}
    assert not student._forward_hooks
    assert not any(m._forward_hooks for m in [*student.modules(), *teacher.modules()])


def test_a_hint_teaches_the_layer_that_it_names(fit) -> None:
    student, teacher = resnet(8), resnet(8)
    batch = next(iter(images()))[0]

    def distance() -> float:
        found = []
        for model in (student, teacher):
            watch = FeatureRecorder(model.eval(), ["stage1"])
            with torch.no_grad():
                model(batch)
            found.append(watch.take()["stage1"])
            watch.close()
        return float(F.mse_loss(*found))

    before = distance()
    module = DistillationModule(
        student.train(),
        teacher,
        losses={"hint": 1.0},
        layers={"stage1": "stage1"},
        optimizer=OptimizerSettings(lr=0.01),
    )
    head = student.head.weight.detach().clone()
    fit(module, images(), max_epochs=20)
    assert distance() < 0.6 * before
    torch.testing.assert_close(student.head.weight.detach(), head, rtol=0, atol=0.02)  # weight decay alone


def test_texts_compare_tokens_that_are_no_padding(fit) -> None:
    student, teacher = bert(1), bert(2)
    losses = {"soft_labels": 5.0, "cross_entropy": 2.0, "hidden_cosine": 1.0, "relations": 1.0}
    module = DistillationModule(
        student, teacher, temperature=2.0, losses=losses, loss_options={"relations": {"heads": 4}}
    )
    assert [(m.student, m.teacher) for m in module.layers.matches["hidden_cosine"]] == [
        ("bert.encoder.layer.0", "bert.encoder.layer.1")
    ]
    assert [m.student.rpartition(".")[2] for m in module.layers.matches["relations"]] == ["query", "key", "value"]
    trainer = fit(module, texts())
    assert all(trainer.callback_metrics[f"distil/{name}"].isfinite() for name in losses)

    batch = next(iter(texts()))
    seen = {}
    handles = [
        model.bert.encoder.layer[-1].register_forward_hook(
            lambda m, a, out, k=k: seen.update({k: out if isinstance(out, torch.Tensor) else out[0]})
        )
        for k, model in (("s", student.eval()), ("t", teacher))
    ]
    module.log = module.log_dict = lambda *a, **k: None
    noted = {}
    module._log_step = lambda loss, losses: noted.update({name: value for name, (_, value) in losses.items()})
    module.setup("fit")
    module.training_step(batch, 0)
    cosine = F.cosine_similarity(seen["s"], seen["t"], dim=-1)[batch["attention_mask"].bool()]
    torch.testing.assert_close(noted["hidden_cosine"], 1 - cosine.mean())
    for handle in handles:
        handle.remove()


def test_layers_of_unequal_resolution_name_both_sides_before_the_first_step(fit) -> None:
    module = DistillationModule(resnet(4), resnet(4), losses={"hint": 1.0}, layers={"stage1": "stage3"})
    with pytest.raises(UserError, match=r"hint: the student's 'stage1' gives .* the teacher's 'stage3' .*only widths"):
        fit(module, images())


def test_teachers_are_averaged_with_their_weights(fit) -> None:
    teachers = [resnet(4).eval(), resnet(8).eval()]
    module = DistillationModule(resnet(4), teachers, teacher_weights=[3, 1])
    batch = next(iter(images()))[0]
    expected = 0.75 * teachers[0](batch) + 0.25 * teachers[1](batch)
    torch.testing.assert_close(module.teacher.logits(((batch,), {}), torch.device("cpu")), expected)
    other = DistillationModule(resnet(4), teachers, teacher_weights=[1, 1])
    assert other.teacher.fingerprint != module.teacher.fingerprint
    trainer = fit(module, images())
    assert "teacher/accuracy" in trainer.callback_metrics
    for given, told in (([1], "expected 2 numbers"), ([1, 0], "expected 2 numbers above zero")):
        with pytest.raises(UserError, match=told):
            DistillationModule(resnet(4), teachers, teacher_weights=given)


def test_teacher_computes_in_the_precision_asked_for() -> None:
    batch, teacher = next(iter(images()))[0], resnet(8).eval()
    exact = teacher(batch)
    call, cpu = ((batch,), {}), torch.device("cpu")
    half = DistillationModule(resnet(4), teacher, teacher_precision="bfloat16").teacher.logits(call, cpu)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.1, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        full = DistillationModule(resnet(4), teacher, teacher_precision="float32").teacher.logits(call, cpu)
    assert torch.equal(full, exact)
    with pytest.raises(UserError, match="did you mean 'bfloat16'"):
        DistillationModule(resnet(4), teacher, teacher_precision="bfloat")


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_a_compiled_teacher_says_the_same() -> None:
    batch, teacher = next(iter(images()))[0], resnet(4).eval()
    found = DistillationModule(resnet(4), teacher, compile_teacher=True).teacher
    torch.testing.assert_close(found.logits(((batch,), {}), torch.device("cpu")), teacher(batch), rtol=1e-4, atol=1e-5)
    assert found.modules == [teacher]


def test_a_teacher_without_weights_is_told() -> None:
    with torch.device("meta"):
        empty = nn.Linear(4, 4)
    with pytest.raises(UserError, match="it is on the meta device; build it outside"):
        DistillationModule(nn.Linear(4, 4), empty)


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


HINTED = {"soft_labels": 1.0, "hint": 1.0}


def test_a_checkpoint_with_projections_loads_outside_of_a_fit(fit, tmp_path) -> None:
    module = DistillationModule(resnet(4), resnet(8), losses=HINTED)
    trainer = fit(module, images())
    path = next((tmp_path / "checkpoints").glob("last-*.ckpt"))
    loaded = DistillationModule.load_from_checkpoint(path, student=resnet(4), teacher=module.teacher.module)
    assert set(loaded.state_dict()) == set(module.state_dict())
    for name, weight in loaded.projections.state_dict().items():
        assert torch.equal(weight, module.projections.state_dict()[name])
    fresh = DistillationModule(resnet(4), module.teacher.module, losses=HINTED)
    found = trainer.test(fresh, images(), ckpt_path=path, verbose=False)[0]
    assert "student/accuracy" in found


def test_what_projections_have_learned_outlives_a_second_fit(fit, tmp_path) -> None:
    module = DistillationModule(resnet(4), resnet(8), losses=HINTED)
    fit(module, images(), enable_checkpointing=False)
    before = {name: p.detach().clone() for name, p in module.projections.named_parameters()}
    module.optimizer = OptimizerSettings(lr=1e-12, weight_decay=0.0)
    fit(module, images(), enable_checkpointing=False)
    for name, weight in module.projections.named_parameters():
        torch.testing.assert_close(weight.detach(), before[name], rtol=0, atol=1e-9)


def test_frozen_parts_of_the_student_keep_their_mode(fit) -> None:
    student = resnet(4)
    norm = next(m for m in student.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    module = DistillationModule(student, resnet(8), losses=HINTED)
    module.layers.open(((next(iter(images()))[0],), {}))
    assert not norm.training
    assert student.training
    module.layers.close()


def test_hooks_are_off_after_a_failure_and_the_next_fit_is_whole(fit) -> None:
    module = DistillationModule(resnet(4), resnet(8), losses=HINTED)
    with pytest.raises(UserError, match="could not be run on the first batch"):
        fit(module, DataLoader([(torch.randn(3), 0)] * 8, 4), enable_checkpointing=False)
    assert not any(m._forward_hooks for m in module.modules())

    class Failing(DistillationModule):
        def on_train_batch_end(self, *args) -> None:
            raise ValueError("in the middle")

    broken = Failing(resnet(4), resnet(8), losses=HINTED)
    with pytest.raises(ValueError, match="in the middle"):
        fit(broken, images(), enable_checkpointing=False)
    assert not any(m._forward_hooks for m in [*broken.modules(), *broken.teacher.module.modules()])
    copy.deepcopy(broken)
    fit(module, images(), enable_checkpointing=False)
    assert len(module.projections) == 3


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
