"""Distillation callback: a teacher's losses in the training step of anybody's LightningModule."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lighten.distillation.cache import TeacherCache
from lighten.distillation.capture import Replaced, lent
from lighten.distillation.distributed import check_sync, cross_rank
from lighten.distillation.module import DistillationModule
from lighten.distillation.settings import OWN, DistilSettings, check_layers
from lighten.distillation.step import Moment, TaughtStep, named
from lighten.distillation.teacher import Teacher, check_no_shared_parameters
from lighten.distillation.teaching import Teaching
from lighten.distillation.terms import WeightedLosses, check_terms
from lighten.errors import UserError, one_line
from lighten.schedule import Setting, check_setting
from lighten.tasks import task_of
from lighten.tasks.task import Task
from lighten.training.example_inputs import find_part
from lighten.training.progress import fit_progress, logs_now
from lighten.utils.batch import BatchFormat, Roles
from lighten.utils.checks import check_number
from lighten.utils.inputs import Call

PROJECTIONS = "distil_projections"
"""As which part of the student ``configure_optimizers`` finds the projections of its layers."""


class Distill(L.Callback):
    r"""Add a teacher's losses to the training of a part of any LightningModule, which keeps its own loss.

    The module keeps its ``training_step``. The teacher gets the inputs that the part gets in this step, and

    .. math:: L = L_{step} + w \sum_i w_i L_i

    is minimised: the loss that the step returned, or gave to ``manual_backward``, unscaled, plus the weighted losses
    of the part's outputs. If the step calls the part several times, each output that has a gradient is taught, and the
    mean over them counts; with manual optimization, each is added to the first loss that depends on it.
    A step that returns ``None`` is skipped.

    The teacher is frozen in place and kept outside, as in :class:`DistillationModule`; the checkpoint keeps its
    fingerprint, and a fit is not resumed with another one. Logs each loss as ``distil/<loss>`` and its share of the
    whole as ``distil/share/<loss>`` at log points. Projections of layers of unequal widths are among the part's
    parameters while ``configure_optimizers`` runs, and nowhere else: neither in the module nor in its state dict.

    Args:
        teacher: called with the part's inputs; returns outputs of the same shape. Or several, which are averaged.
        losses: weights by name, numbers or schedules; by default ``{"soft_labels": 1.0}``. Those on labels and ``dkd``
            need ``batch``, unless it is ``(inputs, labels)`` or a mapping with ``labels``.
        weight: of their sum beside the step's own loss, at least zero; a number, or a schedule.
        temperature: as for :class:`DistillationModule`, by default the task's.
        module: name of the part; by default ``student`` if there is one, otherwise the whole module if the step calls
            its ``forward``, otherwise the only part that is trained.
        task: as for :class:`DistillationModule`, and so are all settings that follow.
        loss_options: as there.
        layers: as there.
        cache: as there; for a step that passes each batch unchanged to the part, in one call.
        batch: as there; only needed for labels, sample weights and keys.
        outputs: as there.
        teacher_outputs: as there.
        teacher_weights: as there.
        teacher_precision: as there.
        compile_teacher: as there.

    Raises:
        UserError: for settings out of range; in ``setup``, if the part does not exist or is not called, shares weights
            with the teacher or has another ``Distill``, and for strategies that flatten weights; in the fit, if outputs
            have another shape than the teacher's, or a step gives none.

    Example:
        >>> distill = Distill(torch.nn.Linear(4, 3), losses={"soft_labels": 1.0}, weight=0.5)
        >>> trainer = L.Trainer(max_epochs=30, callbacks=[distill])  # doctest: +SKIP
    """

    def __init__(
        self,
        teacher: nn.Module | Sequence[nn.Module],
        *,
        losses: Mapping[str, Setting] | None = None,
        weight: Setting = 0.5,
        temperature: Setting | None = None,
        module: str | None = None,
        task: str | Task = "classification",
        loss_options: Mapping[str, Mapping[str, float]] | None = None,
        layers: str | Mapping[str, str] = DistilSettings.layers,
        cache: TeacherCache | None = None,
        batch: Roles | None = None,
        outputs: str | int | None = None,
        teacher_outputs: str | int | None = None,
        teacher_weights: Sequence[float] | None = None,
        teacher_precision: str | None = DistilSettings.teacher_precision,
        compile_teacher: bool = DistilSettings.compile_teacher,
    ) -> None:
        self.task, self.module, self.weight = task_of(task), module, weight
        check_weight(weight)
        check_layers(layers)
        temperature = self.task.temperature if temperature is None else temperature
        weights = check_terms(
            {"soft_labels": 1.0} if losses is None else losses, DistilSettings.soft_weight, temperature,
            teacher=True, task=self.task,
        )  # fmt: skip
        if OWN in weights:
            raise UserError("losses has 'own', which a step of one's own adds up itself; leave it out")
        self.terms = WeightedLosses(weights, temperature, task=self.task, options=loss_options)
        self.batch_format, self.outputs = BatchFormat(batch, keyed=cache is not None), outputs
        if self.batch_format.weighted:
            self.terms.check_weighted()
        if not isinstance(teacher, nn.Module | list | tuple):
            raise UserError(f"teacher={teacher!r}, expected a model, or several")
        self.teacher = Teacher(
            teacher, weights=teacher_weights, precision=teacher_precision, compiled=compile_teacher,
            outputs=outputs if teacher_outputs is None else teacher_outputs,
        )  # fmt: skip
        self.layers, self.cache = layers, cache
        self._teaching: Teaching | None = None
        self._part: str | None = None
        self._fits = False
        self._configuring: Replaced | None = None
        self._step: TaughtStep | None = None

    @property
    def state_key(self) -> str:
        """Tell several of these apart in a checkpoint, by the part that they teach."""
        return self._generate_state_key(module=self.module)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the part, and match its layers with the teacher's, before any strategy wraps the module."""
        self._fits = stage == "fit"
        if not self._fits:
            return
        _check_surroundings(trainer, pl_module)
        check_no_shared_parameters(pl_module, *self.teacher.modules)
        self._part, student, call = find_part(trainer, pl_module, self.module, called=True)
        others = [c for c in trainer.callbacks if isinstance(c, Distill) and c is not self]  # type: ignore[attr-defined]
        if any(other._part == self._part for other in others):
            raise UserError(f"Distill is given twice for {named(self._part)}; give one of them several teachers")
        before = None if self._teaching is None else self._teaching.layers
        projections = before.projections if before is not None and before.student is student else nn.ModuleDict()
        self._teaching = Teaching(
            self.terms, self.teacher, student=student, projections=projections, layers=self.layers, cache=self.cache
        )
        self._open(trainer, pl_module, call)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """See that the optimizer has the projections, which then are alike on all ranks."""
        self._close()
        trained = {id(p) for o in trainer.optimizers for group in o.param_groups for p in group["params"]}
        for name, weight in self._projections.named_parameters():
            if id(weight) not in trained:
                raise UserError(
                    f"configure_optimizers leaves out {name!r}, which maps a layer's width to the teacher's and is "
                    f"among the parameters of {named(self._part or '')} then; give the optimizer all of them, or "
                    "compare layers of equal width"
                )
            with torch.no_grad():
                weight.copy_(trainer.strategy.broadcast(weight.detach().cpu()))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the teacher into the training step."""
        self._close()
        self._step = TaughtStep(
            self._active, pl_module, self._part or "", weight=self.weight, batch_format=self.batch_format,
            outputs=self.outputs, moment=partial(_moment, pl_module), after=partial(self._log, pl_module),
        )  # fmt: skip
        self._step.begin()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look again for what other ranks have cached."""
        self._active.cached_teacher.refresh()

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give all ranks the mean gradient of the projections, which are in no bucket."""
        if trainer.world_size > 1:
            for weight in self._projections.parameters():
                if weight.grad is not None:
                    weight.grad.copy_(trainer.strategy.reduce(weight.grad.clone(), reduce_op="mean"))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse to go on where nothing has been taught, or warn where it may come.

        Raises:
            UserError: of optimization by hand, if no loss has come from the part so far.
        """
        if self._step is None or self._step.told:
            return
        if pl_module.automatic_optimization:  # a part may be frozen for some epochs
            self._step.told = True
            rank_zero_warn(
                f"Distill has taught nothing so far: no answer of {named(self._part or '')} has a gradient, as it is "
                "frozen or runs under no_grad"
            )
        else:
            raise UserError(
                f"no loss that {type(pl_module).__name__} has given to self.manual_backward comes from what "
                f"{named(self._part or '')} answers, so nothing was taught; go backward by self.manual_backward(loss)"
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the teacher out of it."""
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave nothing behind: Lightning does not tear down what has failed."""
        self._close()
        self._part = None

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave nothing behind."""
        self._close()
        self._part = None

    def state_dict(self) -> dict[str, Any]:
        """Return the teacher's fingerprint, and what projections have learned."""
        if self._teaching is None:
            return {}
        weights = {name: weight.detach() for name, weight in self._projections.named_parameters()}
        return {"teacher": self._teaching.fingerprint, "projections": weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the same teacher.

        Raises:
            UserError: in a fit, if the checkpoint's was another, or compared other layers.
        """
        if not self._fits or not state_dict:
            return
        self._active.check_resumed(state_dict["teacher"])
        saved, own = state_dict["projections"], dict(self._projections.named_parameters())
        if {name: weight.shape for name, weight in saved.items()} != {name: p.shape for name, p in own.items()}:
            raise UserError(
                f"the checkpoint has projections {', '.join(saved) or 'of no layers'}, this fit "
                f"{', '.join(own) or 'of none'}; compare the layers that it began with, or start again"
            )
        self._projections.load_state_dict(saved)

    @property
    def _active(self) -> Teaching:
        """What teaches, from ``setup`` of a fit on."""
        if self._teaching is None:
            raise RuntimeError("Distill.setup has not run for a fit")
        return self._teaching

    @property
    def _projections(self) -> nn.ModuleDict:
        layers = self._active.layers
        return nn.ModuleDict() if layers is None else layers.projections

    def _open(self, trainer: L.Trainer, pl_module: L.LightningModule, call: Call) -> None:
        """Ask the teacher what the part is asked, make the projections that layers need, and open the cache."""
        teaching = self._active
        answers = _asked(self.teacher, call, self._part or "")
        if teaching.layers is not None:
            teaching.layers.open(call)
            teaching.layers.close()  # others look at the part in their setup
        if len(self._projections) and isinstance(trainer.strategy, ModelParallelStrategy):
            raise UserError(
                f"{next(iter(self._projections))!r} maps the width of a layer to the teacher's, and an optimizer of "
                "sharded weights (ModelParallelStrategy) takes none that is not in the module; use ddp, or compare "
                "layers of equal width"
            )
        if len(self._projections):
            self._configuring = Replaced(
                pl_module, "configure_optimizers", partial(self._configure, trainer, pl_module)
            )
        if self.cache is not None:
            teaching.cached_teacher.open(
                getattr(trainer, "datamodule", None), precision=str(trainer.precision),
                outputs=None if answers is None else self.task.outputs_of(answers),
                rank=trainer.global_rank, world=trainer.world_size,
                asked=f"{type(pl_module).__qualname__}.{self._part}",
            )  # fmt: skip

    def _configure(self, trainer: L.Trainer, pl_module: L.LightningModule, configure: Any) -> Any:
        """Run ``configure_optimizers`` with the projections among the part's parameters."""
        trainer.precision_plugin.convert_module(self._projections.to(pl_module.device))
        with lent(pl_module.get_submodule(self._part or ""), PROJECTIONS, self._projections):
            return configure()

    def _log(self, pl_module: L.LightningModule) -> None:
        if self._step is not None and logs_now(pl_module.trainer):
            pl_module.log_dict(self._step.logged(), batch_size=1)  # at log points alone: nothing is averaged

    def _close(self) -> None:
        """Give the module its own methods back and take the hooks off."""
        if self._configuring is not None:
            self._configuring.undo()
        if self._step is not None:
            self._step.end()
        self._configuring = self._step = None
        if self._teaching is not None:
            self._teaching.close()


def check_weight(weight: Any) -> None:
    """Raise ``UserError`` unless it is a number from zero on, or a schedule of such, above zero at some time."""
    values = check_setting("weight", weight)
    for value in values:
        check_number("weight", value, least=0)
    if not any(values):
        raise UserError("weight=0: expected a number above 0 at some time, as else nothing is learned from the teacher")


def _check_surroundings(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """Raise ``UserError`` where the module is taught already, or a strategy cuts weights flat."""
    if isinstance(pl_module, DistillationModule):
        raise UserError(
            "Distill is for modules that have a training step of their own, and DistillationModule teaches already; "
            "give it the teacher, or leave one of both out"
        )
    if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy):
        raise UserError(
            f"Distill needs the answers of a part, {type(trainer.strategy).__name__} runs all of the module behind one "
            "wrapper of flat pieces; use ddp or ModelParallelStrategy (FSDP2)"
        )
    check_sync(trainer)


def _asked(teacher: Teacher, call: Call, part: str) -> Tensor | None:
    """Return the teacher's answers to an example call of the part; ``None`` where the part has no weights yet.

    Raises:
        UserError: if the teacher does not take what the part takes.
    """
    given = [value for value in tree_leaves(call) if isinstance(value, Tensor)]
    if any(tensor.is_meta for tensor in given):
        return None
    try:
        return teacher.logits(call, given[0].device if given else torch.device("cpu"))
    except Exception as error:  # whatever a teacher's forward raises
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"the teacher {type(teacher.module).__name__} cannot be asked what {named(part)} is called with: "
            f"{one_line(error, 300)}; give a teacher that takes the same, or name another part as module"
        ) from error


def _moment(pl_module: L.LightningModule) -> Moment:
    trainer = pl_module.trainer
    look = pl_module.device.type == "cpu" or trainer.current_epoch == 0
    return Moment(fit_progress(trainer), cross_rank(pl_module), first=trainer.global_step == 0, look=look)
