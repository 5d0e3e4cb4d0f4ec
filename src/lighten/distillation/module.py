"""The LightningModule that teaches a student."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lighten.distillation.cache import TeacherCache
from lighten.distillation.layers import Layers, matches_of, restore_projections_
from lighten.distillation.loss import IGNORED
from lighten.distillation.match import blocks
from lighten.distillation.scores import Likeness, Scores
from lighten.distillation.settings import DistilSettings, check_label_smoothing, check_layers
from lighten.distillation.targets import check_labels, check_range, check_weights
from lighten.distillation.teacher import Teacher, accepted, check_apart
from lighten.distillation.terms import Ranks, Seen, Terms, check_terms
from lighten.distillation.tokens import NextTokens
from lighten.errors import UserError
from lighten.schedule import Setting
from lighten.training.example_inputs import example_call
from lighten.training.optimizer import OptimizerSettings
from lighten.training.progress import fit_progress, fit_steps, logs_now
from lighten.utils.batch import BatchFormat, Parts, Roles
from lighten.utils.inputs import Call, logits_of, run

OptimizerBuilder = Callable[[nn.Module, int], OptimizerLRScheduler]
"""From a module and the fit's number of optimizer steps to what ``configure_optimizers`` may return."""

CHECKPOINT_KEY = "lighten_teacher"
"""Where a checkpoint keeps the teacher's fingerprint."""


class DistillationModule(L.LightningModule):
    """Trains a student on labels and, where there is a teacher, on what the teacher makes of the same batches.

    Batches are ``(inputs, labels)``, or mappings with ``labels`` whose other entries are the models' keywords (a model
    is spared those that it does not take); ``batch`` says what the parts of others are. Logs ``train/loss``, ``lr``,
    and with a teacher each loss as ``distil/<loss>`` and its share of the sum as ``distil/share/<loss>`` at log
    points; on validation and test ``student/…`` and ``teacher/…`` as :class:`Scores` has them, ``gap/accuracy``,
    ``gap/loss`` and ``gap/macro_f1`` (teacher - student), ``gap/retention`` (student / teacher), ``gap/agreement`` and
    ``gap/kl``.

    The teacher is frozen in place and kept outside: in no state dict, optimizer, DDP bucket or checkpoint,
    and always in eval mode. A checkpoint keeps its fingerprint and refuses to go on with another one.

    Args:
        student: returns logits (batch, classes), or an output with ``logits``; ``outputs`` says which of others.
        teacher: the same, or several of which the logits are averaged; ``None`` trains on labels alone.
        temperature: of the soft labels, above zero; a number, or a schedule ``{from, to, begin, end, shape}``.
        soft_weight: weight of the soft labels in [0, 1]; the rest is for the labels.
        losses: weights by name instead of ``soft_weight``, numbers or schedules; names are ``settings.LOSSES``.
        loss_options: keywords of losses by name, such as ``{"dkd": {"beta": 2.0}}``.
        layers: which layers hints and the like compare: ``"uniform"``, or patterns of the student's names to patterns
            of the teacher's.
        task: ``"classification"``, ``"multilabel"``, ``"regression"`` or ``"masked_lm"``: answers for masked tokens, or
            for the next ones where the student is a causal language model whose labels are its input ids.
        teacher_weights: of several teachers; equal by default.
        teacher_precision: ``"float32"``, ``"bfloat16"`` or ``"float16"``; ``None`` goes with the trainer.
        compile_teacher: run it through ``torch.compile``.
        shard_teacher: where FSDP2 (``ModelParallelStrategy``) shards the student, shard the teacher over the devices as
            well, in place; all ranks then ask it together.
        cache: keeps the teacher's logits from the first epoch on; opened already, or for a data module that has
            ``fingerprint``, ``train_samples`` and ``views``.
        optimizer: from module and number of steps to what ``configure_optimizers`` may return;
            usually an :class:`OptimizerSettings`, which is also the default.
        label_smoothing: of the cross-entropy, in [0, 1).
        num_classes: checked against the logits where given.
        batch: a role for each part of a batch, ``("input", "input", "label")``, or for entries of a mapping,
            ``{"target": "label"}``: ``"input"``, ``"label"``, ``"weight"`` (of samples: multiplies their losses, not
            their scores), ``"key"`` (for the cache) or ``"ignore"``. With a cache, the third of three parts
            is keys.
        outputs: name or position of the student's output that is trained, where it has several.
        teacher_outputs: the teacher's, by default the same.

    Raises:
        UserError: for a setting out of its range, layers that do not match, or a student that shares parameters with
            the teacher.

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
        temperature: Setting = DistilSettings.temperature,
        soft_weight: float = DistilSettings.soft_weight,
        losses: Mapping[str, Setting] | None = None,
        loss_options: Mapping[str, Mapping[str, float]] | None = None,
        layers: str | Mapping[str, str] = DistilSettings.layers,
        task: str = "classification",
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
        weights = check_terms(losses, soft_weight, temperature, teacher=teacher is not None, task=task)
        check_layers(layers)
        check_label_smoothing(label_smoothing)
        self.teacher = None
        if teacher is not None:
            self.teacher = Teacher(
                teacher, weights=teacher_weights, precision=teacher_precision, compiled=compile_teacher,
                outputs=outputs if teacher_outputs is None else teacher_outputs,
            )  # fmt: skip
            for each in self.teacher.modules:
                check_apart(student, each)
        self.student = student
        self.terms = Terms(weights, temperature, task=task, label_smoothing=label_smoothing, options=loss_options)
        if self.batch_format.weighted:
            self.terms.check_weighted()
        self.task = task
        self.num_classes = num_classes
        self.cache = cache
        self.projections, self.layers = nn.ModuleDict(), None
        if self.teacher is not None and self.terms.compared:
            matches = matches_of(self.terms.compared, layers, student, self.teacher.module)
            self.layers = Layers(matches, student, self.teacher, self.projections)
        if cache is not None and self.layers is not None:
            names = ", ".join(self.layers.matches)
            raise UserError(f"cache keeps logits alone, {names} compare layers; leave the cache out, or these losses")
        if shard_teacher and cache is not None:
            raise UserError("cache asks the teacher on one rank and not on another, its shards need all; leave one out")
        self.shard_teacher = shard_teacher
        self.optimizer = OptimizerSettings() if optimizer is None else optimizer
        self._scores: dict[str, Scores] = {}
        self._likeness: Likeness | None = None
        self._logits: dict[str, Tensor] = {}
        self._next_tokens = NextTokens()
        self._batch_size = 0
        self.save_hyperparameters(self._settings(layers))

    def setup(self, stage: str) -> None:
        """Look at the layers that are compared, and project where widths differ; before a strategy wraps anything."""
        self._next_tokens = NextTokens()
        if stage != "fit":
            return
        check_sync(self.trainer)
        if self.shard_teacher and not isinstance(self.trainer.strategy, ModelParallelStrategy):
            raise UserError(
                f"shard_teacher=True needs ModelParallelStrategy (FSDP2), {type(self.trainer.strategy).__name__} keeps "
                "the teacher whole on each device; leave it off"
            )
        if self.cache is not None and not self.cache.samples:
            self._open_cache(self.cache)
        if self.layers is not None:
            self.layers.open(example_call(self.trainer, self, self.student))

    def teardown(self, stage: str) -> None:
        """Take the hooks off again."""
        self.close()

    def configure_callbacks(self) -> list[L.Callback]:
        """Return what takes the hooks off after a failure: Lightning does not tear down what has failed."""
        return [] if self.layers is None else [_CloseOnException()]

    def close(self) -> None:
        """Let go of the models' hooks and of the last batch, and write what the cache still holds."""
        if self.layers is not None:
            self.layers.close()
        self._logits = {}
        if self.cache is not None and self.cache.samples:
            self.cache.refresh()

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
        _shard(self.student, *self.projections.values(), mesh=mesh["data_parallel"])
        if self.teacher is not None and self.shard_teacher:
            _ = self.teacher.fingerprint  # of whole weights, which every checkpoint asks for
            _shard(*self.teacher.modules, mesh=mesh["data_parallel"], reshard_after_forward=True)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the student, with whatever arguments it takes."""
        args, kwargs = accepted(self.student, (args, kwargs))
        return self.student(*args, **kwargs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the weighted sum of the losses, a scalar."""
        parts = self.batch_format.labelled(batch)
        call = parts.call
        logits, labels = self._answers(parts, first=batch_idx == 0)
        if parts.weights is not None:
            check_weights(parts.weights, len(logits), look=self._looks(labels))
        seen = Seen(logits, labels, mask=call[1].get("attention_mask"), weights=parts.weights)
        if self.terms.asks_teacher or self.layers is not None:
            seen.teacher = self._teacher_logits(call, parts.keys)
            self._check_outputs(logits, seen.teacher)
        if self.layers is not None:
            seen.pairs = self.layers.pairs()
        self._logits = {"student": logits.detach()} | ({} if seen.teacher is None else {"teacher": seen.teacher})
        losses = self.terms(seen, fit_progress(self.trainer), self._ranks())
        weighted = {name: weight * value for name, (weight, value) in losses.items()}
        loss = torch.stack([*weighted.values(), self._nothing(logits)]).sum()
        self._log_step(loss, {name: value for name, (_, value) in losses.items()}, weighted)
        return loss

    def _nothing(self, logits: Tensor) -> Tensor:
        """Return zero, with a gradient of zero for what no loss may look at now: DDP waits for all that learns."""
        zero = logits.new_zeros(())
        if not self.terms.uses_logits:
            zero = zero + 0.0 * logits.sum()
        return zero + sum(0.0 * p.sum() for p in self.projections.parameters())

    def blame(self) -> str | None:
        """Return whose logits of the last batch are not finite, and for which of its samples; asked on a bad loss."""
        for role in ("teacher", "student"):
            if role in self._logits:
                bad = ~torch.isfinite(self._logits[role]).flatten(1).all(1)
                if bool(bad.any()):
                    return f": the {role}'s logits are not finite for sample {int(bad.nonzero()[0])} of the batch"
        return None

    def on_train_epoch_start(self) -> None:
        """Look again for what other ranks have cached."""
        if self.cache is not None:
            self.cache.refresh()

    def on_train_epoch_end(self) -> None:
        """Ask for the samples that the loader dropped with its last batch, so that the next epoch finds them."""
        dataset: Any = getattr(getattr(self.trainer, "datamodule", None), "train_set", None)
        if self.cache is None or not hasattr(dataset, "__getitems__"):
            return
        self.cache.refresh()
        missing = self.cache.missing(self.current_epoch % self.cache.views)
        if not 0 < len(missing) < self._batch_size * self.trainer.world_size:
            return  # all are there, or the epoch was cut short
        # shared out by sample, not by place in the list: another rank may have written some of it already
        samples = missing % self.cache.samples
        mine = samples[samples % self.trainer.world_size == self.trainer.global_rank]
        if len(mine):
            batch = dataset.__getitems__([(self.current_epoch, sample) for sample in mine.tolist()])
            batch = self.trainer.strategy.batch_to_device(batch, self.device)
            with torch.no_grad(), self.trainer.precision_plugin.forward_context():
                parts = self.batch_format.split(batch)
                self._teacher_logits(parts.call, parts.keys)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the scores of student and teacher."""
        self._score(batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the scores of student and teacher."""
        self._score(batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the student's logits, (batch, classes)."""
        return self._run_student(self.batch_format.split(batch).call)

    def on_validation_epoch_start(self) -> None:
        """Start counting anew."""
        self._scores, self._likeness = {}, None

    def on_test_epoch_start(self) -> None:
        """Start counting anew."""
        self._scores, self._likeness = {}, None

    def on_validation_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores()

    def on_test_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer for student and projections, and its schedule over the whole fit."""
        learns = nn.ModuleList([self.student, self.projections]) if self.projections else self.student
        return self.optimizer(learns, fit_steps(self.trainer))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the teacher's fingerprint, not the teacher."""
        checkpoint[CHECKPOINT_KEY] = None if self.teacher is None else self.teacher.fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that another teacher has taught.

        Raises:
            UserError: if the teachers differ, or the fit to be resumed has lost or gained one.
        """
        restore_projections_(self.projections, checkpoint.get("state_dict", {}))
        saved = checkpoint.get(CHECKPOINT_KEY)
        given = None if self.teacher is None else self.teacher.fingerprint
        if saved != given and (self._fits or (saved and given)):
            raise UserError(
                f"the checkpoint's teacher is {_short(saved)}, the one given is {_short(given)}; "
                "give the teacher that this student began with, or start anew"
            )

    def _open_cache(self, cache: TeacherCache) -> None:
        data: Any = getattr(self.trainer, "datamodule", None)
        if self.teacher is None or not hasattr(data, "train_samples") or self.num_classes is None:
            raise UserError(
                "cache is not open, and opens itself only with num_classes, a teacher, and a data module that has "
                "fingerprint, train_samples and views; call cache.open(…) first"
            )
        identity = {
            "teacher": self.teacher.fingerprint,
            "data": data.fingerprint,
            "precision": self.teacher.precision or str(self.trainer.precision),
        }
        if data.views != 1:
            identity["augmentation seed"] = str(data.seed)
        cache.open(
            identity, samples=data.train_samples, views=data.views, outputs=self.num_classes,
            rank=self.trainer.global_rank, world=self.trainer.world_size,
        )  # fmt: skip
        if self.trainer.is_global_zero:
            print(cache.announce())

    def _teacher_logits(self, call: Call, keys: Tensor | None) -> Tensor:
        assert self.teacher is not None
        if self.cache is None:
            return self._finite(self.teacher.logits(call, self.device), None)
        if keys is None:
            raise UserError(
                "cache needs batches with keys, one number a sample and view: (inputs, labels, keys) or a mapping with "
                "'keys'; set keyed on the data module, or leave the cache out"
            )
        keys = keys.cpu()
        self._batch_size = max(self._batch_size, len(keys))
        known, there = self.cache.read(keys)
        if not bool(there.all()):  # all of the batch, so that a row's bits do not depend on what a kill has left
            logits = self._finite(self.teacher.logits(call, self.device), keys).float().cpu()
            known[~there] = self.cache.write(keys[~there], logits[~there])
        return known.to(self.device, non_blocking=True)

    def _finite(self, logits: Tensor, keys: Tensor | None) -> Tensor:
        """Look at the teacher's first batches; later ones would show in the loss, which is looked at every step."""
        if self.global_step > 0 and keys is None:
            return logits
        bad = ~torch.isfinite(logits).flatten(1).all(1)
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            raise UserError(
                f"the teacher's logits are not finite for sample {first} of the batch; look at that sample, or run the "
                "teacher in float32 (teacher_precision)"
            )
        return logits

    def _ranks(self) -> Ranks:
        """Return what losses need of other ranks; nothing where there is one."""
        if self.trainer.world_size == 1:
            return Ranks()
        return Ranks(gather=self._gather, mean=lambda x: self.trainer.strategy.reduce(x, reduce_op="mean"))

    def _gather(self, rows: Tensor) -> Tensor:
        sizes: Any = self.all_gather(torch.tensor(len(rows), device=rows.device))
        if len(set(sizes.flatten().tolist())) > 1:
            raise UserError(
                f"dist couples the samples of all ranks, and they hold {sizes.flatten().tolist()}; give each rank "
                "batches of one size (drop_last)"
            )
        gathered: Any = self.all_gather(rows, sync_grads=rows.requires_grad)
        return gathered.flatten(0, 1)

    def _answers(self, parts: Parts, *, first: bool = False) -> tuple[Tensor, Tensor]:
        """Return the student's logits for a batch, and the labels that they are held against."""
        labels = check_labels(parts.labels, self.task)
        if first and self.training and len(labels) == 1 and _uses_batch_statistics(self.student):
            raise UserError(_batch_of_one(self.student))
        if self.task == "masked_lm":
            teachers = [] if self.teacher is None else self.teacher.modules
            labels = self._next_tokens.labels(self.student, parts.call, labels, teachers)
        try:
            logits = self._run_student(parts.call)
        except ValueError as error:
            if "more than 1 value per channel" in str(error):
                raise UserError(_batch_of_one(self.student)) from error
            raise
        if self.num_classes not in (None, logits.shape[-1]):
            raise UserError(f"the student gives {logits.shape[-1]} classes, the data have {self.num_classes}")
        check_range(logits, labels, self.task, look=self._looks(labels))
        return logits, labels

    def _run_student(self, call: Call) -> Tensor:
        return logits_of(run(self.student, accepted(self.student, call)), self.outputs)

    @property
    def _fits(self) -> bool:
        return self._trainer is not None and self.trainer.state.fn == "fit"

    def _looks(self, labels: Tensor) -> bool:
        """Return whether values are looked at; after the first epoch the host would wait for the device for nothing."""
        return labels.device.type == "cpu" or self.current_epoch == 0

    def _check_outputs(self, student_logits: Tensor, teacher_logits: Tensor) -> None:
        student, teacher = student_logits.shape, teacher_logits.shape
        if student[-1] != teacher[-1]:
            raise UserError(
                f"the teacher gives {teacher[-1]} classes, the student {student[-1]}; they must know the same ones"
            )

    def _score(self, batch: Any) -> None:
        parts = self.batch_format.labelled(batch)
        answers, labels = self._answers(parts)
        logits = {"student": answers}
        if self.teacher is not None:
            logits["teacher"] = self.teacher.logits(parts.call, self.device)
            self._check_outputs(logits["student"], logits["teacher"])
            if self.task in ("classification", "masked_lm"):
                self._likeness = self._likeness or Likeness(self.device)
                self._likeness.update(logits["student"], logits["teacher"], labels)
        if self.layers is not None:
            self.layers.forget()
        for name, value in logits.items():
            if name not in self._scores:
                self._scores[name] = Scores(value.shape[-1], value.device, self.task)
            self._scores[name].update(value, labels)

    def _log_scores(self) -> None:
        values: dict[str, Tensor] = {}
        for name, scores in self._scores.items():
            found = scores.compute(name)
            if found is None and self.trainer.sanity_checking:
                return  # the first batches alone may have no label
            if found is None:
                data = "test" if self.trainer.testing else "validation"
                raise UserError(
                    f"every label of the {data} data is {IGNORED}, which leaves its sample out; expected some that "
                    "count: label them, or leave these data out"
                )
            values.update(found)
        for name in ("accuracy", "macro_f1", "pearson", "loss"):
            if f"teacher/{name}" in values:
                values[f"gap/{name}"] = values[f"teacher/{name}"] - values[f"student/{name}"]
        if "teacher/accuracy" in values:
            values["gap/retention"] = values["student/accuracy"] / values["teacher/accuracy"].clamp_min(1e-9)
        if self._likeness is not None:
            values.update(self._likeness.compute())
        self._scores, self._likeness = {}, None
        shown = "student/accuracy" if "student/accuracy" in values else "student/loss"
        self.log_dict({k: v for k, v in values.items() if k != shown}, sync_dist=True)
        if shown in values:
            self.log(shown, values[shown], sync_dist=True, prog_bar=True)

    def _log_step(self, loss: Tensor, losses: Mapping[str, Tensor], weighted: Mapping[str, Tensor]) -> None:
        if not logs_now(self.trainer):
            return
        self.log("train/loss", loss.detach(), prog_bar=True)
        values = {"lr": self.trainer.optimizers[0].param_groups[0]["lr"]}
        if self.teacher is not None:
            total = loss.detach().clamp_min(1e-12)
            values.update({f"distil/{name}": value.detach() for name, value in losses.items()})
            values.update({f"distil/share/{name}": value.detach() / total for name, value in weighted.items()})
        self.log_dict(values)

    def _settings(self, layers: str | Mapping[str, str]) -> dict[str, Any]:
        chosen = self.optimizer
        return {
            "temperature": _plain(self.terms.temperature),
            "losses": {name: _plain(setting) for name, setting in self.terms.weights.items()},
            "loss_options": self.terms.options,
            "layers": _plain(layers),
            "task": self.task,
            "teacher_precision": None if self.teacher is None else self.teacher.precision,
            "label_smoothing": self.terms.label_smoothing,
            "num_classes": self.num_classes,
            "optimizer_settings": chosen.as_dict() if isinstance(chosen, OptimizerSettings) else repr(chosen),
        }


def _shard(*models: nn.Module, **settings: Any) -> None:
    """Shard models block by block, unless an earlier fit did it."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    for model in models:
        if any(isinstance(p, DTensor) for p in model.parameters()):
            continue
        for name in blocks(model):
            fully_shard(model.get_submodule(name), **settings)
        fully_shard(model, **settings)


class _CloseOnException(L.Callback):
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(pl_module, DistillationModule):
            pl_module.close()


def check_sync(trainer: L.Trainer) -> None:
    """Raise ``UserError`` where batch norm is to be synchronised over processes on the CPU: torch has no way to."""
    strategy: Any = trainer.strategy
    on_cpu = strategy.root_device.type == "cpu"
    if on_cpu and trainer.world_size > 1 and getattr(strategy, "_layer_sync", None) is not None:
        raise UserError("sync_batchnorm=True: torch synchronises batch norm between GPUs alone; leave it off on CPUs")


def _uses_batch_statistics(model: nn.Module) -> bool:
    return any(isinstance(m, _BatchNorm) and m.training for m in model.modules())


def _batch_of_one(student: nn.Module) -> str:
    return (
        f"a batch of one sample reached {type(student).__name__}, whose batch norm needs two or more to "
        "train; raise batch_size, or set drop_last on the data loader"
    )


def _short(fingerprint: str | None) -> str:
    return "none" if fingerprint is None else fingerprint[:12]


def _plain(setting: Any) -> Any:
    return dict(setting) if isinstance(setting, Mapping) else setting
