import copy
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from lighten.distillation.cache import TeacherCache
from lighten.distillation.module import DistillationModule
from lighten.distillation.teacher import fingerprint
from lighten.errors import UserError
from lighten.training.checkpoint import AtomicCheckpointIO
from lighten.training.fit import make_trainer
from lighten.training.optimizer import OptimizerSettings


def test_training_loss_is_the_weighted_sum_of_its_parts(net, loader, fit, monkeypatch) -> None:
    student, teacher = net(4).eval(), net(6, seed=1)
    inputs, labels = next(iter(loader()))
    s, t = student(inputs), teacher.eval()(inputs)
    soft = F.kl_div((s / 3).log_softmax(1), (t / 3).softmax(1), reduction="batchmean") * 9
    hard = F.cross_entropy(s, labels, label_smoothing=0.1)
    module = DistillationModule(student, teacher, temperature=3.0, soft_weight=0.7, label_smoothing=0.1)
    module.log = module.log_dict = lambda *a, **k: None
    sgd = torch.optim.SGD(student.parameters(), lr=0.1)
    trainer = {"optimizers": [sgd], "world_size": 1, "global_step": 0, "estimated_stepping_batches": 10}
    trainer |= {"_logger_connector": SimpleNamespace(should_update_logs=True), "is_last_batch": False}
    module._trainer = type("T", (), trainer)()
    monkeypatch.setattr("lighten.distillation.module.fit_progress", lambda trainer: 0.0)
    module.student.eval()
    torch.testing.assert_close(module.training_step((inputs, labels), 0), 0.7 * soft + 0.3 * hard)


def test_nothing_of_the_teacher_is_in_the_module(net, loader, fit, tmp_path) -> None:
    student, teacher = net(3), net(32, seed=1)
    module = DistillationModule(student, teacher)
    assert set(module.state_dict()) == {f"student.{k}" for k in student.state_dict()}
    trainer = fit(module, loader())

    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for p in student.parameters()}
    path = next((tmp_path / "checkpoints").glob("last-*.ckpt"))
    checkpoint = AtomicCheckpointIO().load_checkpoint(path)
    assert set(checkpoint["state_dict"]) == set(module.state_dict())
    assert checkpoint["lighten_teacher"] == fingerprint(teacher)

    fit(DistillationModule(net(3)), loader(), default_root_dir=tmp_path / "alone")
    alone = next((tmp_path / "checkpoints").glob("last-*.ckpt"))
    assert abs(path.stat().st_size - alone.stat().st_size) < 2000
    assert sum(p.nbytes for p in teacher.parameters()) > 4000


def test_teacher_is_the_same_bytes_after_a_fit(net, loader, fit) -> None:
    student, teacher = net(4), net(8, seed=1)
    before, student_before = fingerprint(teacher), fingerprint(student)
    module = DistillationModule(student, teacher)
    fit(module, loader(), max_epochs=2)
    assert fingerprint(teacher) == before
    assert fingerprint(student) != student_before
    module.train()
    assert not any(m.training for m in teacher.modules())


def test_a_student_learns_what_its_teacher_knows(net, loader, fit) -> None:
    """Soft labels alone: the student has to come to the teacher's own, wrong, answers."""
    teacher, student = net(8, seed=1), net(8, seed=2)
    for model in (teacher, student):
        model[3].p = 0.0
    inputs = next(iter(loader(batch_size=24)))[0]
    wanted = teacher.eval()(inputs).softmax(1)
    before = F.l1_loss(student.eval()(inputs).softmax(1), wanted)
    module = DistillationModule(
        student.train(), teacher, losses={"soft_labels": 1.0}, optimizer=OptimizerSettings(lr=0.02)
    )
    fit(module, loader(), max_epochs=25)
    assert F.l1_loss(student.eval()(inputs).softmax(1), wanted) < 0.25 * before


def test_scores_of_both_are_logged_under_equal_names(net, loader, fit) -> None:
    student, teacher = net(4), net(8, seed=1)
    trainer = fit(DistillationModule(student, teacher), loader())
    metrics = trainer.callback_metrics
    assert {f"{who}/{what}" for who in ("student", "teacher") for what in ("accuracy", "macro_f1", "loss")} < set(
        metrics
    )
    batches = list(loader())
    for name, model in (("student", student.eval()), ("teacher", teacher)):
        right = sum((model(x).argmax(1) == y).sum().item() for x, y in batches)
        assert metrics[f"{name}/accuracy"].item() == pytest.approx(right / 24)
    gap = metrics["teacher/accuracy"] - metrics["student/accuracy"]
    assert metrics["gap/accuracy"].item() == pytest.approx(gap.item())
    assert {"train/loss", "distil/soft_labels", "distil/cross_entropy", "lr"} <= set(metrics)


def test_without_a_teacher_it_is_plain_training(net, loader, fit) -> None:
    trainer = fit(DistillationModule(net(4)), loader())
    assert {"train/loss", "student/accuracy"} <= set(trainer.callback_metrics)
    assert not [name for name in trainer.callback_metrics if name.startswith(("teacher", "distil", "gap"))]


def test_batches_may_be_mappings_whose_entries_are_keywords(loader, fit) -> None:
    class Wordy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 3)

        def forward(self, *, features: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.head(features) * scale[:, None]}

    samples = [{"features": torch.randn(5), "scale": torch.tensor(1.0), "labels": i % 3} for i in range(6)]
    module = DistillationModule(Wordy(), Wordy())
    trainer = fit(module, DataLoader(samples, 3))
    assert trainer.global_step == 2
    out = module(features=torch.ones(2, 5), scale=torch.ones(2))
    assert out["logits"].shape == (2, 3)


def test_another_teacher_is_refused_on_resume_and_the_same_one_taken(net, loader, fit, tmp_path) -> None:
    teacher = net(8, seed=1)
    fit(DistillationModule(net(4), teacher), loader())
    path = next((tmp_path / "checkpoints").glob("last-*.ckpt"))

    def resume(teacher: nn.Module | None) -> L.Trainer:
        settings = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False}
        trainer = make_trainer(folder=tmp_path, stage="student", settings=settings)
        trainer.fit(DistillationModule(net(4), teacher), loader(), loader(), ckpt_path=path)
        return trainer

    with pytest.raises(UserError, match="the checkpoint's teacher is"):
        resume(net(8, seed=2))
    with pytest.raises(UserError, match="the one given is none"):
        resume(None)
    assert resume(copy.deepcopy(teacher)).current_epoch == 2


def test_a_checkpoint_can_be_tested_without_its_teacher(net, loader, fit, tmp_path) -> None:
    trainer = fit(DistillationModule(net(4), net(8, seed=1)), loader())
    expected = trainer.callback_metrics["student/loss"]
    path = next((tmp_path / "checkpoints").glob("last-*.ckpt"))
    found = trainer.test(DistillationModule(net(4, seed=5)), loader(), ckpt_path=path, verbose=False)[0]
    assert found["student/loss"] == pytest.approx(expected.item())


def test_hparams_are_plain_python(net) -> None:
    module = DistillationModule(net(4), net(8), losses={"soft_labels": 5, "cross_entropy": 2}, num_classes=4)
    assert dict(module.hparams) == {
        "temperature": 4.0,
        "losses": {"soft_labels": 5, "cross_entropy": 2},
        "loss_options": {},
        "layers": "uniform",
        "task": "classification",
        "teacher_precision": None,
        "label_smoothing": 0.0,
        "num_classes": 4,
        "optimizer_settings": OptimizerSettings().as_dict(),
    }


def relabelled(loader: DataLoader, label: int) -> DataLoader:
    return DataLoader([(x, label) for x, _ in loader.dataset], 8)


@pytest.mark.parametrize(
    ("build", "batches", "told"),
    [
        (lambda n: DistillationModule(n(4, 10), n(4, 7)), None, "teacher gives 7 classes, the student 10"),
        (lambda n: DistillationModule(n(4, 4), n(4, 1)), None, "teacher gives 1 classes, the student 4"),
        (lambda n: DistillationModule(n(4, 4), num_classes=5), None, "student gives 4 classes, the data have 5"),
        (lambda n: DistillationModule(n(4)), 4, "labels run from 4 to 4, expected 0 to 3"),
        (lambda n: DistillationModule(n(4)), -1, "labels run from -1 to -1"),
        (lambda n: DistillationModule(nn.Sequential(*n(4)[:3])), None, r"logits of shape \(8, 4, 6, 6\)"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(net, loader, fit, tmp_path, build, batches, told) -> None:
    train = loader() if batches is None else relabelled(loader(), batches)
    with pytest.raises(UserError, match=told) as caught:
        fit(build(net), train)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_batch_without_labels_is_told(net, fit) -> None:
    with pytest.raises(UserError, match="without labels"):
        fit(DistillationModule(net(4)), DataLoader(torch.randn(4, 3, 6, 6), 2))


@pytest.mark.parametrize("flat", [False, True])
def test_batch_norm_with_a_batch_of_one_is_told(net, loader, fit, flat: bool) -> None:
    """Torch itself objects only where there are no pixels to average over."""
    student = net(4)
    if flat:
        student = nn.Sequential(nn.Flatten(), nn.Linear(108, 4), nn.BatchNorm1d(4))
    with pytest.raises(UserError, match=r"batch of one sample.*batch_size"):
        fit(DistillationModule(student), loader(samples=3, batch_size=1))


def test_a_last_batch_of_one_is_told_where_torch_cannot_go_on(loader, fit) -> None:
    student = nn.Sequential(nn.Flatten(), nn.Linear(108, 4), nn.BatchNorm1d(4))
    with pytest.raises(UserError, match="drop_last"):
        fit(DistillationModule(student), loader(samples=9, batch_size=4))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"soft_weight": 2}, "soft_weight=2"),
    ],
)
def test_settings_out_of_range_are_refused(net, settings, told) -> None:
    with pytest.raises(UserError, match=told):
        DistillationModule(net(4), net(8), **settings)


def test_a_teacher_in_shards_is_refused_where_nothing_is_sharded(tmp_path):
    module = DistillationModule(nn.Linear(4, 3), nn.Linear(4, 3), shard_teacher=True)
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match="SingleDeviceStrategy keeps the teacher whole on each device; leave it off"):
        module.setup("fit")
    with pytest.raises(UserError, match="its shards need all; leave one out"):
        DistillationModule(nn.Linear(4, 3), nn.Linear(4, 3), shard_teacher=True, cache=TeacherCache(tmp_path))
