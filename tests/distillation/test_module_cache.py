"""Fits that keep their teacher's answers: the same bits as asking it, and it is asked once a sample and view."""

import copy

import lightning as L
import pytest
import torch
from torch import nn

from lighten.data import build_data
from lighten.distillation.cache import TeacherCache
from lighten.distillation.module import DistillationModule
from lighten.errors import UserError
from lighten.models import build_model
from lighten.training.checkpoint import latest_good
from lighten.training.fit import make_trainer
from lighten.training.optimizer import OptimizerSettings

STEPS = 5


class Counted(nn.Module):
    """A teacher that counts how often it is asked while the student trains."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = build_model("mlp", num_classes=10, input_shape=(1, 28, 28), hidden=[32])
        self.asked = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        return self.net(x)


@pytest.fixture(scope="module")
def student() -> nn.Module:
    torch.manual_seed(0)
    return build_model("mlp", num_classes=10, input_shape=(1, 28, 28), hidden=[16])


def data(**options):
    return build_data("fashion_mnist", batch_size=64, seed=3, **options)


def fit(tmp_path, student, cache, *, epochs=2, resume=False, stop=None, **options):
    source = data(**options)
    source.keyed = cache is not None
    teacher = Counted()
    module = DistillationModule(
        copy.deepcopy(student), teacher, cache=cache, num_classes=10, optimizer=OptimizerSettings(lr=0.01)
    )
    settings = {
        "max_epochs": epochs, "accelerator": "cpu", "enable_progress_bar": False, "limit_train_batches": STEPS,
        "limit_val_batches": 0,
    }  # fmt: skip
    trainer = make_trainer(
        folder=tmp_path, stage="student", settings=settings, callbacks=[stop] if stop else [], monitor=None
    )
    path = latest_good(tmp_path / "checkpoints") if resume else None
    trainer.fit(module, datamodule=source, ckpt_path=str(path) if path else None, weights_only=True)
    return {name: p.detach().clone() for name, p in module.student.named_parameters()}, teacher.asked


def same(ours, theirs) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(("options", "views"), [({"augment": False}, 1), ({"views": 2}, 2)])
def test_the_fit_has_the_bits_of_one_that_asks_every_time(tmp_path, student, options, views, capsys) -> None:
    epochs, batches = 4, 1000 // 64
    plain, often = fit_whole(tmp_path / "plain", student, None, epochs, options)
    kept, once = fit_whole(tmp_path / "kept", student, TeacherCache(tmp_path / "cache"), epochs, options)
    again, rarely = fit_whole(tmp_path / "again", student, TeacherCache(tmp_path / "cache"), epochs, options)
    assert same(kept, plain)
    assert same(again, plain)
    assert often == epochs * batches
    assert once == views * (batches + 1)  # and once for the samples of the last batch, which is not full and left out
    assert rarely == 0
    assert f"teacher cache: 1,000 samples x {views} views" in capsys.readouterr().out


def fit_whole(folder, student, cache, epochs, options):
    source = data(validation=11000, **options)
    source.keyed = cache is not None
    teacher = Counted()
    module = DistillationModule(
        copy.deepcopy(student), teacher, cache=cache, num_classes=10, optimizer=OptimizerSettings(lr=0.01)
    )
    settings = {"max_epochs": epochs, "accelerator": "cpu", "enable_progress_bar": False, "limit_val_batches": 0}
    trainer = make_trainer(folder=folder, stage="student", settings=settings, monitor=None)
    trainer.fit(module, datamodule=source)
    return {name: p.detach().clone() for name, p in module.student.named_parameters()}, teacher.asked


class Stop(L.Callback):
    """Ends the fit as a kill would, in the middle of the first epoch's filling."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == STEPS + 2:
            raise KeyboardInterrupt


def test_a_fit_that_was_stopped_goes_on_to_the_same_bits(tmp_path, student) -> None:
    straight, _ = fit(tmp_path / "a", student, TeacherCache(tmp_path / "one"), epochs=3, augment=False)
    with pytest.raises(BaseException):  # noqa: B017, PT011 (Lightning turns an interrupt into SystemExit or an error)
        fit(tmp_path / "b", student, TeacherCache(tmp_path / "two"), epochs=3, augment=False, stop=Stop())
    resumed, _ = fit(tmp_path / "b", student, TeacherCache(tmp_path / "two"), epochs=3, augment=False, resume=True)
    assert same(resumed, straight)


def test_answers_of_another_teacher_or_of_other_data_are_refused(tmp_path, student) -> None:
    fit(tmp_path, student, TeacherCache(tmp_path / "cache"), augment=False)
    with pytest.raises(UserError, match="data"):
        fit(tmp_path / "other", student, TeacherCache(tmp_path / "cache"), augment=False, validation=999)


def test_a_part_that_was_cut_short_is_made_anew(tmp_path, student) -> None:
    kept, _ = fit(tmp_path / "a", student, TeacherCache(tmp_path / "cache"), augment=False)
    (part,) = (tmp_path / "cache").glob("part-*.bin")
    with part.open("r+b") as file:
        file.truncate(100)
    with pytest.warns(UserWarning, match=r"part-0\.bin"):
        again, asked = fit(tmp_path / "b", student, TeacherCache(tmp_path / "cache"), augment=False)
    assert same(again, kept)
    assert asked == 2 * STEPS


def test_views_without_end_are_refused(tmp_path, student) -> None:
    with pytest.raises(UserError, match="views=None, another view of each sample in every epoch, is never read again"):
        fit(tmp_path, student, TeacherCache(tmp_path / "cache"))


@pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`")
def test_batches_without_keys_and_data_that_cannot_open_it_are_told(tmp_path, student) -> None:
    settings = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "limit_val_batches": 0}
    batches = [(torch.zeros(2, 1, 28, 28), torch.zeros(2).long())]
    for given, told in (({"datamodule": data(augment=False)}, "batches with keys"), ({}, "cache is not open")):
        cache = TeacherCache(tmp_path / "cache")
        module = DistillationModule(copy.deepcopy(student), Counted(), cache=cache, num_classes=10)
        trainer = make_trainer(folder=tmp_path, stage="student", settings=settings, monitor=None)
        with pytest.raises(UserError, match=told):
            trainer.fit(module, **given or {"train_dataloaders": batches})


def test_losses_on_layers_need_the_teacher_itself(tmp_path, student) -> None:
    with pytest.raises(UserError, match="cache keeps logits alone, hint compare layers"):
        DistillationModule(
            copy.deepcopy(student), Counted().net, losses={"hint": 1.0}, cache=TeacherCache(tmp_path), num_classes=10
        )


def test_validation_alone_needs_no_open_cache(tmp_path, student) -> None:
    module = DistillationModule(
        copy.deepcopy(student), Counted(), cache=TeacherCache(tmp_path / "cache"), num_classes=10
    )
    trainer = make_trainer(
        folder=tmp_path, stage="student", settings={"accelerator": "cpu", "limit_val_batches": 1}, monitor=None
    )
    trainer.validate(module, datamodule=data(augment=False), verbose=False)
    assert not (tmp_path / "cache").exists()
