"""DistillationModule: a LightningModule that trains a student on labels and on a teacher's answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lighten.distillation import batch_checks
from lighten.distillation.cache import TeacherCache
from lighten.distillation.distributed import check_sync, cross_rank, shard_
from lighten.distillation.layers import MatchedLayers, restore_projections_
from lighten.distillation.metrics import EpochMetrics
from lighten.distillation.settings import DistilSettings, check_label_smoothing, check_layers
from lighten.distillation.teacher import Teacher, ask, ask_with_labels, check_no_shared_parameters, filter_kwargs
from lighten.distillation.teaching import Teaching, WeighedLosses
from lighten.distillation.terms import WeightedLosses, check_terms, plain
from lighten.errors import UserError
from lighten.schedule import Setting
from lighten.tasks import task_of
from lighten.tasks.task import Task
from lighten.training.example_inputs import example_call
from lighten.training.optimizer import OptimizerSettings
from lighten.training.progress import fit_progress, fit_steps, logs_now
from lighten.utils.batch import BatchFormat, Parts, Roles

OptimizerBuilder = Callable[[nn.Module, int], OptimizerLRScheduler]
"""From a module and the fit's number of optimizer steps to what ``configure_optimizers`` may return."""

CHECKPOINT_KEY = "lighten_teacher"
"""Where a checkpoint keeps the teacher's fingerprint."""


class DistillationModule(L.LightningModule):
    """Trains a student on labels and, if there is a teacher, on the teacher's outputs for the same batches.

    Batches are ``(inputs, labels)``, or mappings with ``labels`` whose other entries are the models' keywords (a model
    gets only those that it takes); ``batch`` describes other batches. Logs ``train/loss``, ``lr``,
    and with a teacher each loss as ``distil/<loss>`` and its share of the sum as ``distil/share/<loss>`` at log
    points; on validation and test ``student/…``, ``teacher/…`` and ``gap/…`` as :class:`EpochMetrics` has them.

    The teacher is frozen in place and kept outside: in no state dict, optimizer, DDP bucket or checkpoint,
    and always in eval mode. A checkpoint keeps its fingerprint and refuses to resume with another one.

    Args:
        student: returns the task's outputs, such as logits (batch, classes), or an object with ``logits``; for others,
            ``outputs`` says which one.
        teacher: the same, or several, whose outputs are averaged; ``None`` trains on labels alone.
        temperature: of the soft labels, above zero; a number, or a schedule ``{from, to, begin, end, shape}``; by
            default the task's.
        soft_weight: weight of the soft labels in [0, 1]; the rest is for the labels.
        losses: weights by name instead of ``soft_weight``, numbers or schedules; names are ``settings.LOSSES``.
        loss_options: keywords of losses by name, such as ``{"dkd": {"beta": 2.0}}``.
        layers: those that hints and similar losses compare: ``"uniform"``, or patterns of names, from the student's to
            the teacher's.
        task: by name, or an object with settings: ``"classification"``, ``"multilabel"``,
            ``"regression"``, ``"segmentation"``, ``"image"``, ``"detection"``, ``"keypoints"``,
            ``"token_classification"``, ``"masked_lm"`` (masked tokens, or the next ones where the student is a causal
            language model whose labels are its input ids), or one of your own (:func:`lighten.register_task`).
        teacher_weights: weights of several teachers; equal by default.
        teacher_precision: ``"float32"``, ``"bfloat16"`` or ``"float16"``; ``None`` takes the trainer's.
        compile_teacher: run it through ``torch.compile``.
        shard_teacher: if FSDP2 (``ModelParallelStrategy``) shards the student, shard the teacher over the devices as
            well, in place; all ranks then run it together.
        cache: stores the teacher's logits from the first epoch on; already opened, or for a data module that has
            ``fingerprint``, ``train_samples`` and ``views``.
        optimizer: a function of module and number of steps that returns what ``configure_optimizers`` returns, such as
            :class:`OptimizerSettings`.
        label_smoothing: of the cross-entropy, in [0, 1).
        num_classes: if given, checked against the logits.
        batch: a role for each part of a batch, ``("input", "input", "label")``, or for entries of a mapping,
            ``{"target": "label"}``: ``"input"``, ``"label"``, ``"weight"`` (of samples: multiplies their losses, not
            their scores), ``"key"`` (for the cache) or ``"ignore"``. With a cache, the third of three parts is keys.
        outputs: name or position of the student's output to train, if it has several.
        teacher_outputs: the same for the teacher; by default as ``outputs``.

    Raises:
        UserError: for a setting out of its range, layers that do not match, or parameters shared with the teacher.

    Example:
        >>> module = DistillationModule(torch.nn.Linear(4, 3), torch.nn.Linear(4, 3), temperature=2.0)
        >>> sorted(module.state_dict())
        ['student.bias', 'student.weight']
    """

    watched_step = "predict_step"  # shows what the student is called with, and asks neither teacher nor cache

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Sequence[nn.Module] | None = None,
        *,
        temperature: Setting | None = DistilSettings.temperature,
        soft_weight: float = DistilSettings.soft_weight,
        losses: Mapping[str, Setting] | None = None,
        loss_options: Mapping[str, Mapping[str, float]] | None = None,
        layers: str | Mapping[str, str] = DistilSettings.layers,
        task: str | Task = "classification",
        teacher_weights: Sequence[float] | None = None,
        teacher_precision: str | None = DistilSettings.teacher_precision,
        compile_teacher: bool = DistilSettings.compile_teacher,
        shard_teacher: bool = False,
        cache: TeacherCache | None = None,
        optimizer: OptimizerBuilder | None = None,
        label_smoothing: float = 0.0,
        num_classes: int | None = None,
        batch: Roles | None = None,
        outputs: str | int | None = None,
        teacher_outputs: str | int | None = None,
    ) -> None:
        super().__init__()
        self.batch_format, self.outputs = BatchFormat(batch, keyed=cache is not None), outputs
        self.task = task_of(task)
        temperature = self.task.temperature if temperature is None else temperature
        weights = check_terms(losses, soft_weight, temperature, teacher=teacher is not None, task=self.task)
        check_layers(layers)
        check_label_smoothing(label_smoothing)
        asked = None
        if teacher is not None:
            asked = Teacher(
                teacher, weights=teacher_weights, precision=teacher_precision, compiled=compile_teacher,
                outputs=outputs if teacher_outputs is None else teacher_outputs,
            )  # fmt: skip
            check_no_shared_parameters(student, *asked.modules)
        self.student = student
        terms = WeightedLosses(
            weights, temperature, task=self.task, label_smoothing=label_smoothing, options=loss_options
        )
        if self.batch_format.weighted:
            terms.check_weighted()
        self.num_classes = num_classes
        self.projections = nn.ModuleDict()
        self.teaching = Teaching(
            terms, asked, student=student, projections=self.projections, layers=layers, cache=cache,
            sharded=shard_teacher,
        )  # fmt: skip
        self.shard_teacher = shard_teacher
        self.optimizer = OptimizerSettings() if optimizer is None else optimizer
        self._metrics = EpochMetrics(self.task)
        chosen = self.optimizer
        self.save_hyperparameters(
            terms.settings()
            | {
                "layers": plain(layers),
                "teacher_precision": teacher_precision if self.teacher is not None else None,
                "num_classes": num_classes,
                "optimizer_settings": chosen.as_dict() if isinstance(chosen, OptimizerSettings) else repr(chosen),
            }
        )

    @property
    def teacher(self) -> Teacher | None:
        """Who is asked, outside of the module."""
        return self.teaching.teacher

    @property
    def layers(self) -> MatchedLayers | None:
        """The layers that are compared."""
        return self.teaching.layers

    def setup(self, stage: str) -> None:
        """Look at the layers that are compared, and project where widths differ; before a strategy wraps anything."""
        self.teaching.begin()
        if stage != "fit":
            return
        check_sync(self.trainer)
        if self.shard_teacher and not isinstance(self.trainer.strategy, ModelParallelStrategy):
            raise UserError(
                f"shard_teacher=True needs ModelParallelStrategy (FSDP2), {type(self.trainer.strategy).__name__} keeps "
                "the teacher whole on each device; leave it off"
            )
        self.teaching.cached_teacher.open(
            getattr(self.trainer, "datamodule", None), outputs=self.num_classes, precision=str(self.trainer.precision),
            rank=self.trainer.global_rank, world=self.trainer.world_size,
        )  # fmt: skip
        if self.layers is not None:
            self.layers.open(example_call(self.trainer, self, self.student))

    def teardown(self, stage: str) -> None:
        """Take the hooks off again."""
        self.close()

    def configure_callbacks(self) -> list[L.Callback]:
        """Return what takes the hooks off after a failure: Lightning does not tear down what has failed."""
        return [] if self.layers is None else [_CloseOnException()]

    def close(self) -> None:
        """Let go of the models' hooks and of the last batch, and write what is cached still."""
        self.teaching.close()

    def configure_model(self) -> None:
        """Shard the student where the strategy has a mesh of devices (FSDP2), and the teacher where that is asked.

        A callback that copies the module in its ``setup`` (``WeightAveraging``) calls it before ours runs: projections
        have to be there by then.
        """
        if self.layers is not None and not self.layers.opened and self._fits:
            self.layers.open(example_call(self.trainer, self, self.student))
            self.layers.close()
        mesh = self.device_mesh
        if mesh is None:
            return
        shard_(self.student, *self.projections.values(), mesh=mesh["data_parallel"])
        if self.teacher is not None and self.shard_teacher:
            _ = self.teacher.fingerprint  # of whole weights, which every checkpoint asks for
            shard_(*self.teacher.modules, mesh=mesh["data_parallel"], reshard_after_forward=True)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the student, with whatever arguments it takes."""
        args, kwargs = filter_kwargs(self.student, (args, kwargs))
        return self.student(*args, **kwargs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the weighted sum of the losses, a scalar."""
        parts = self.batch_format.labelled(batch)
        logits, labels, own = self._answers(parts, learns=True, first=batch_idx == 0)
        losses = self.teaching.losses(
            parts, logits, labels, progress=fit_progress(self.trainer), ranks=cross_rank(self),
            first=self.global_step == 0, look=self._looks(labels), own=own,
        )  # fmt: skip
        loss = torch.stack([*(weight * value for weight, value in losses.values()), self._zero_for_ddp(logits)]).sum()
        self._log_step(loss, losses)
        return loss

    def _zero_for_ddp(self, logits: Tensor) -> Tensor:
        """Return zero, with a gradient of zero for what no loss may look at now: DDP waits for all that learns."""
        zero = logits.new_zeros(())
        if not self.teaching.terms.uses_logits:
            zero = zero + 0.0 * logits.sum()
        return zero + sum(0.0 * p.sum() for p in self.projections.parameters())

    def describe_non_finite(self) -> str | None:
        """Return whose logits of the last batch are not finite, and for which of its samples; asked on a bad loss."""
        return self.teaching.describe_non_finite()

    def on_train_epoch_start(self) -> None:
        """Look again for what other ranks have cached."""
        self.teaching.cached_teacher.refresh()

    def on_train_epoch_end(self) -> None:
        """Ask for the samples that the loader dropped with its last batch, so that the next epoch finds them."""
        dataset: Any = getattr(getattr(self.trainer, "datamodule", None), "train_set", None)
        dropped = self.teaching.cached_teacher.dropped(self.current_epoch) if hasattr(dataset, "__getitems__") else []
        if dropped:
            batch = dataset.__getitems__([(self.current_epoch, sample) for sample in dropped])
            batch = self.trainer.strategy.batch_to_device(batch, self.device)
            with torch.no_grad(), self.trainer.precision_plugin.forward_context():
                self.teaching.ask(self.batch_format.split(batch), self.device, first=self.global_step == 0)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the metrics of student and teacher."""
        parts = self.batch_format.labelled(batch)
        answers, labels, _ = self._answers(parts)
        logits = {"student": answers}
        if self.teacher is not None:
            logits["teacher"] = self.teacher.logits(parts.call, self.device)
            batch_checks.check_same_outputs(self.task, answers, logits["teacher"])
        if self.layers is not None:
            self.layers.forget()
        self._metrics.update(logits, labels)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the student's answers, such as logits (batch, classes)."""
        return ask(self.student, self.batch_format.split(batch).call, self.outputs)

    def on_validation_epoch_start(self) -> None:
        """Start counting at zero."""
        self._metrics = EpochMetrics(self.task)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics."""
        data = None if self.trainer.sanity_checking else "test" if self.trainer.testing else "validation"
        values, self._metrics = self._metrics.compute(data), EpochMetrics(self.task)
        shown = f"student/{self.task.metric}" if f"student/{self.task.metric}" in values else "student/loss"
        self.log_dict({k: v for k, v in values.items() if k != shown}, sync_dist=True)
        if shown in values:
            self.log(shown, values[shown], sync_dist=True, prog_bar=True)

    test_step, on_test_epoch_start, on_test_epoch_end = (
        validation_step, on_validation_epoch_start, on_validation_epoch_end
    )  # fmt: skip

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer for student and projections, and its schedule over the whole fit."""
        learns = nn.ModuleList([self.student, self.projections]) if self.projections else self.student
        return self.optimizer(learns, fit_steps(self.trainer))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the teacher's fingerprint, not the teacher."""
        checkpoint[CHECKPOINT_KEY] = self.teaching.fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that another teacher has taught.

        Raises:
            UserError: if the teachers differ, or the fit to be resumed has lost or gained one.
        """
        restore_projections_(self.projections, checkpoint.get("state_dict", {}))
        saved = checkpoint.get(CHECKPOINT_KEY)
        if self._fits or (saved and self.teaching.fingerprint):
            self.teaching.check_resumed(saved)

    def _answers(
        self, parts: Parts, *, learns: bool = False, first: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the student's logits for a batch, the labels that they are held against, and its own loss if asked."""
        labels = self.task.check_labels(parts.labels)
        if first and self.training:
            batch_checks.check_single_sample(self.student, len(labels))
        labels = self.teaching.meant(self.student, parts.call, labels)
        with batch_checks.single_sample_as_user_error(self.student):
            if learns and self.teaching.terms.asks_own:
                logits, own = ask_with_labels(self.student, parts.call, labels, self.outputs)
            else:
                logits, own = ask(self.student, parts.call, self.outputs), None
        look = self._looks(labels)
        self.task.check_answers(logits, labels, outputs=self.num_classes, look=look)
        return logits, labels, own

    @property
    def _fits(self) -> bool:
        return self._trainer is not None and self.trainer.state.fn == "fit"

    def _looks(self, labels: Tensor) -> bool:
        """Return whether values are looked at; after the first epoch the host would wait for the device for nothing."""
        return labels.device.type == "cpu" or self.current_epoch == 0

    def _log_step(self, loss: Tensor, losses: WeighedLosses) -> None:
        if not logs_now(self.trainer):
            return
        self.log("train/loss", loss.detach(), prog_bar=True)
        values = {"lr": self.trainer.optimizers[0].param_groups[0]["lr"]}
        if self.teacher is not None:
            values.update(self.teaching.logged(losses, loss))
        self.log_dict(values)


class _CloseOnException(L.Callback):
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(pl_module, DistillationModule):
            pl_module.close()
