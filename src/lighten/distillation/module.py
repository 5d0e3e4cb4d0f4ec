"""The LightningModule that teaches a student."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lighten.distillation.loss import check_temperature, cross_entropy, loss_weights, soft_labels
from lighten.distillation.scores import Scores
from lighten.distillation.teacher import Teacher, check_apart
from lighten.errors import UserError
from lighten.example import Call, logits_of, split_batch
from lighten.training.optimizer import OptimizerBuilder, OptimizerSettings
from lighten.training.progress import fit_steps

CHECKPOINT_KEY = "lighten_teacher"
"""Where a checkpoint keeps the teacher's fingerprint."""


class DistillationModule(L.LightningModule):
    """Trains a classifier on labels and, where there is a teacher, on the teacher's soft labels.

    Batches are ``(inputs, labels)``, or mappings with ``labels`` whose other entries are the model's
    keywords. Logs ``train/loss``, ``lr``, ``distil/soft_loss`` and ``distil/hard_loss`` at each step; on
    validation and test ``student/{accuracy,macro_f1,loss}``, the same under ``teacher/``, and
    ``gap/accuracy`` (teacher - student).

    The teacher is frozen in place and kept outside: in no state dict, optimizer, DDP bucket or checkpoint,
    and always in eval mode. A checkpoint keeps its fingerprint and refuses to go on with another one.

    Args:
        student: returns logits (batch, classes), or an output with ``logits``.
        teacher: the same; ``None`` trains on labels alone.
        temperature: of the soft labels, above zero.
        soft_weight: weight of the soft labels in [0, 1]; the rest is for the labels.
        losses: weights by name (``soft_labels``, ``cross_entropy``) instead of ``soft_weight``.
        optimizer: from module and number of steps to what ``configure_optimizers`` may return;
            usually an :class:`OptimizerSettings`, which is also the default.
        label_smoothing: of the cross-entropy, in [0, 1).
        num_classes: checked against the logits where given.

    Raises:
        UserError: for a setting out of its range, or a student that shares parameters with the teacher.

    Example:
        >>> module = DistillationModule(torch.nn.Linear(4, 3), torch.nn.Linear(4, 3), temperature=2.0)
        >>> sorted(module.state_dict())
        ['student.bias', 'student.weight']
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        *,
        temperature: float = 4.0,
        soft_weight: float = 0.9,
        losses: Mapping[str, float] | None = None,
        optimizer: OptimizerBuilder | None = None,
        label_smoothing: float = 0.0,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        if not 0.0 <= label_smoothing < 1.0:
            raise UserError(f"label_smoothing={label_smoothing}, expected a number in [0, 1)")
        if teacher is not None:
            check_apart(student, teacher)
        self.student = student
        self.teacher = None if teacher is None else Teacher(teacher)
        self.temperature = temperature
        self.label_smoothing = label_smoothing
        self.num_classes = num_classes
        self.weights = loss_weights(losses, soft_weight, teacher=teacher is not None)
        self.optimizer = OptimizerSettings() if optimizer is None else optimizer
        self._scores: dict[str, Scores] = {}
        self.save_hyperparameters(self._settings())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the student, with whatever arguments it takes."""
        return self.student(*args, **kwargs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the weighted sum of the losses, a scalar."""
        call, labels = split_batch(batch)
        logits = self._student_logits(call, labels, first=batch_idx == 0)
        losses = {}
        if "soft_labels" in self.weights:
            assert self.teacher is not None
            teacher_logits = self.teacher.logits(call, self.device)
            self._check_classes(logits, teacher_logits)
            losses["soft_labels"] = soft_labels(logits, teacher_logits, self.temperature)
        if "cross_entropy" in self.weights:
            losses["cross_entropy"] = cross_entropy(logits, labels, self.label_smoothing)
        loss = torch.stack([self.weights[name] * value for name, value in losses.items()]).sum()
        self._log_step(loss, losses)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the scores of student and teacher."""
        self._score(batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the scores of student and teacher."""
        self._score(batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the student's logits, (batch, classes)."""
        call, _ = split_batch(batch)
        return logits_of(self(*call[0], **call[1]))

    def on_validation_epoch_start(self) -> None:
        """Start counting anew."""
        self._scores = {}

    def on_test_epoch_start(self) -> None:
        """Start counting anew."""
        self._scores = {}

    def on_validation_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores()

    def on_test_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer for the student and its schedule over the whole fit."""
        return self.optimizer(self.student, fit_steps(self.trainer))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the teacher's fingerprint, not the teacher."""
        checkpoint[CHECKPOINT_KEY] = None if self.teacher is None else self.teacher.fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that another teacher has taught.

        Raises:
            UserError: if the teachers differ, or the fit to be resumed has lost or gained one.
        """
        saved = checkpoint.get(CHECKPOINT_KEY)
        given = None if self.teacher is None else self.teacher.fingerprint
        fitting = self._trainer is not None and self.trainer.state.fn == "fit"
        if saved != given and (fitting or (saved and given)):
            raise UserError(
                f"the checkpoint's teacher is {_short(saved)}, the one given is {_short(given)}; "
                "give the teacher that this student began with, or start anew"
            )

    def _student_logits(self, call: Call, labels: Any, *, first: bool = False) -> Tensor:
        self._check_labels(labels)
        if first and self.training and len(labels) == 1 and _uses_batch_statistics(self.student):
            raise UserError(_batch_of_one(self.student))
        try:
            logits = logits_of(self.student(*call[0], **call[1]))
        except ValueError as error:
            if "more than 1 value per channel" in str(error):
                raise UserError(_batch_of_one(self.student)) from error
            raise
        if logits.ndim != 2:
            raise UserError(f"the student returns logits of shape {tuple(logits.shape)}, expected (batch, classes)")
        if self.num_classes not in (None, logits.shape[1]):
            raise UserError(f"the student gives {logits.shape[1]} classes, the data have {self.num_classes}")
        self._check_range(labels, logits.shape[1])
        return logits

    def _check_labels(self, labels: Any) -> None:
        if not isinstance(labels, Tensor):
            raise UserError("the batch has no labels, expected (inputs, labels) or a mapping with 'labels'")
        if labels.ndim != 1:
            raise UserError(f"labels have shape {tuple(labels.shape)}, expected (batch,) of class indices")

    def _check_range(self, labels: Tensor, classes: int) -> None:
        if labels.device.type != "cpu" and self.current_epoch > 0:
            return  # seen already, and looking again would make the host wait for the device
        if not len(labels):
            return
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise UserError(
                f"labels run from {low} to {high}, expected 0 to {classes - 1} for {classes} classes; "
                "map them to class indices, or give the model more classes"
            )

    def _check_classes(self, student_logits: Tensor, teacher_logits: Tensor) -> None:
        student, teacher = student_logits.shape[-1], teacher_logits.shape[-1]
        if student != teacher:
            raise UserError(f"the teacher gives {teacher} classes, the student {student}; they must know the same ones")

    def _score(self, batch: Any) -> None:
        call, labels = split_batch(batch)
        logits = {"student": self._student_logits(call, labels)}
        if self.teacher is not None:
            logits["teacher"] = self.teacher.logits(call, self.device)
            self._check_classes(logits["student"], logits["teacher"])
        for name, value in logits.items():
            if name not in self._scores:
                self._scores[name] = Scores(value.shape[1], value.device)
            self._scores[name].update(value, labels)

    def _log_scores(self) -> None:
        values: dict[str, Tensor] = {}
        for name, scores in self._scores.items():
            values.update(scores.compute(name))
        if "teacher" in self._scores:
            values["gap/accuracy"] = values["teacher/accuracy"] - values["student/accuracy"]
        self._scores = {}
        self.log_dict({k: v for k, v in values.items() if k != "student/accuracy"}, sync_dist=True)
        if "student/accuracy" in values:
            self.log("student/accuracy", values["student/accuracy"], sync_dist=True, prog_bar=True)

    def _log_step(self, loss: Tensor, losses: Mapping[str, Tensor]) -> None:
        values = {"lr": self.trainer.optimizers[0].param_groups[0]["lr"]}
        if self.teacher is not None:
            names = {"soft_labels": "distil/soft_loss", "cross_entropy": "distil/hard_loss"}
            values.update({names[name]: value.detach() for name, value in losses.items()})
        self.log("train/loss", loss.detach(), prog_bar=True)
        self.log_dict(values)

    def _settings(self) -> dict[str, Any]:
        chosen = self.optimizer
        return {
            "temperature": self.temperature,
            "losses": self.weights,
            "label_smoothing": self.label_smoothing,
            "num_classes": self.num_classes,
            "optimizer_settings": chosen.as_dict() if isinstance(chosen, OptimizerSettings) else repr(chosen),
        }


def _uses_batch_statistics(model: nn.Module) -> bool:
    return any(isinstance(m, _BatchNorm) and m.training for m in model.modules())


def _batch_of_one(student: nn.Module) -> str:
    return (
        f"a batch of one sample reached {type(student).__name__}, whose batch norm needs two or more to "
        "train; raise batch_size, or set drop_last on the data loader"
    )


def _short(fingerprint: str | None) -> str:
    return "none" if fingerprint is None else fingerprint[:12]
