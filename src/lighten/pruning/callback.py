"""Pruning callback."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.optim import Optimizer

from lighten.errors import UserError
from lighten.pruning.agreement import agree
from lighten.pruning.copies import Copies
from lighten.pruning.damage import DamageCurve
from lighten.pruning.live import add_cuts_, lay_out_
from lighten.pruning.live_cut import check_holders, take_shapes_
from lighten.pruning.mask import mask_
from lighten.pruning.norms import restore_masks_
from lighten.pruning.plan import Plan
from lighten.pruning.planner import trace_structure
from lighten.pruning.pruner import Pruner
from lighten.pruning.settings import PruneSettings, Settings, check_live, check_times
from lighten.pruning.updates import Updates
from lighten.training.example_inputs import example_calls, find_part
from lighten.training.loading import before_loading
from lighten.training.progress import StepClock, fell_short, fit_position, is_last_step, logs_now
from lighten.training.record import log_now
from lighten.training.rewrap import prepare_rewrap, rewrap_
from lighten.utils.inputs import ExampleInput, as_call
from lighten.utils.optimizer_state import check_state, optimizers_of, slice_state_

SHARDED = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)


class Prune(L.Callback):
    """Gradually remove whole channels during the fit, by masks or cuts; :func:`~lighten.pruning.shrink` cuts the rest.

    Works on any LightningModule. Groups are found, tried and printed in ``setup``. From ``begin`` to ``end`` the
    removed share rises to ``amount``, in at most 30 updates evenly spaced in optimizer steps. Removed channels are
    zeroed again after every optimizer step. Rank zero decides for all. Logs ``prune/amount`` (the share requested
    now), ``prune/sparsity`` (share of the prunable channels that are removed) and ``prune/macs`` (share saved); with
    each update also ``prune/kept/<group>``, the share of each group's channels that stay; ``system/step_ms`` and
    ``system/samples_per_second`` of this process; and with ``live`` ``prune/width``, the share not cut yet.

    Args:
        amount: share of ``target`` to remove, in (0, 1).
        score: as for :func:`~lighten.pruning.plan_pruning`, like ``scope``, ``target``, ``align`` and ``rate_norm``;
            ``"taylor"`` adds up the gradients of all steps since the last update, as the optimizer gets them.
        begin: share of the fit's optimizer steps at which the ramp starts; a fit that resumes from a checkpoint without
            pruning counts only the remaining steps.
        end: share at which ``amount`` is reached.
        scope: as there; ``"sensitivity"`` is measured at the first update, on ``calibration``.
        exclude: names or patterns of layers not to prune, relative to the pruned module.
        schedule: how the share rises: ``"cubic"`` (Zhu & Gupta 2017), ``"linear"``, ``"exponential"`` or
            ``"one_shot"``, all of it at ``begin``.
        soft: until ``end``, zero the removed filters only at each update, so that they can grow again and the choice
            can change (Soft Filter Pruning, He et al. 2018).
        target: as there; widths for ``"latency"`` are measured in ``setup``.
        align: as there.
        rate_norm: as there.
        calibration: inputs of the pruned module for ``"sensitivity"``; by default 128 samples of the train data.
        curves: for ``"sensitivity"``, measured before: by group, points (removed share of its channels, damage).
        module: name of the part to prune; by default ``student`` if there is one, otherwise the whole module.
        of: as there; what an earlier fit has masked stays masked.
        live: cut removed channels out of the module during the fit, so that the fit gets faster. Parameters stay the
            same objects; gradients, optimizer state, averages and the strategy's wrapper are cut too, and checkpoints
            from any time load (``load_from_checkpoint`` too, once ``Prune`` is imported). The final weights are those
            that masks give, up to rounding, except for what depends on a tensor's size or on positions in it: dropout,
            gradient norms where a masked channel has a gradient (for example behind a sigmoid), optimizers that use
            whole tensors (LAMB, Muon, Adafactor), learned ranges, and widths that a forward needs in a fixed
            proportion, which is kept at each cut.
        cuts: number of cuts before the last one at ``end``; by default four, or fewer if the ramp has fewer steps.

    Attributes:
        plan: the current plan during the fit, the final one after it; ``None`` before.
        preview: the plan for the full ``amount``, with the weights at the start.

    Raises:
        UserError: for settings out of range; in ``setup``, if :func:`~lighten.pruning.plan_pruning` refuses the model;
            after the fit, if it stopped before the ramp was over.

    Example:
        >>> prune = Prune(0.5, begin=0.1, end=0.6)
        >>> trainer = L.Trainer(max_epochs=30, callbacks=[prune])  # doctest: +SKIP
    """

    def __init__(
        self,
        amount: float,
        *,
        score: str = PruneSettings.score,
        begin: float = PruneSettings.begin,
        end: float = PruneSettings.end,
        scope: str = PruneSettings.scope,
        exclude: Sequence[str] = (),
        schedule: str = PruneSettings.schedule,
        soft: bool = PruneSettings.soft,
        target: str = PruneSettings.target,
        align: int = PruneSettings.align,
        rate_norm: float = PruneSettings.rate_norm,
        calibration: Sequence[ExampleInput] | None = None,
        curves: Mapping[str, DamageCurve] | None = None,
        module: str | None = None,
        of: str = Settings.of,
        live: bool = PruneSettings.live,
        cuts: int = PruneSettings.cuts,
    ) -> None:
        self.settings = Settings(
            amount, score=score, scope=scope, target=target, align=align, rate_norm=rate_norm, of=of
        )
        check_times(begin, end, schedule)
        check_live(live, cuts, soft=soft)
        self.begin, self.end, self.exclude, self.module = begin, end, tuple(exclude), module
        self.schedule, self.soft, self.live, self.cuts = schedule, soft, live, cuts
        self.calibration = None if calibration is None else [as_call(given) for given in calibration]
        self.curves = curves
        self._calibrated = calibration is not None or curves is not None
        self.preview: Plan | None = None
        self._updates = self._new_updates()
        self._pruner: Pruner | None = None
        self._plan: Plan | None = None
        self._state: dict[str, Any] = {}
        self._loading: Any = None
        self._loaded = False
        self._unfinished: str | None = None
        self._seen = 0

    @property
    def plan(self) -> Plan | None:
        """The current plan during the fit, the final one after it; ``None`` before."""
        return self._plan if self._pruner is None else self._pruner.plan

    @property
    def state_key(self) -> str:
        """Tell several of these apart in a checkpoint, by the part that they prune."""
        return self._generate_state_key(module=self.module)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the groups, before any strategy wraps the model, and show what will go."""
        self._loaded = False
        self._loading = pl_module.register_load_state_dict_pre_hook(_mask_as)
        if stage != "fit":
            return
        if isinstance(trainer.strategy, SHARDED):
            raise UserError(
                f"Prune needs whole weights on every device, {type(trainer.strategy).__name__} shards them; use ddp"
            )
        self._pruner, self._plan, self._state, self._updates = None, None, {}, self._new_updates()
        for cut in pl_module.modules():
            lay_out_(cut)  # what an earlier fit has cut is masked again: a checkpoint may be of any shape
        part, target, call = find_part(trainer, pl_module, self.module)
        structure = trace_structure(target, call, exclude=self.exclude)
        if self.settings.scope == "sensitivity" and not self._calibrated:
            self.calibration = example_calls(trainer, pl_module, target)
        others = [c for c in trainer.callbacks if c is not self]  # type: ignore[attr-defined]
        swa = [vars(c) for c in others if isinstance(c, StochasticWeightAveraging)]
        averages = lambda: [held.get("_average_model") for held in swa]  # noqa: E731
        copies = Copies(others, pl_module, part, averages=averages, inside=self.live)
        self._pruner = Pruner(
            target, structure, self.settings, copies=copies, calibration=self.calibration, curves=self.curves,
            soft=self.soft, part=part, precision=str(trainer.precision), agree=partial(agree, trainer),
            everywhere=lambda holds: trainer.strategy.reduce_boolean_decision(holds, all=True),
        )  # fmt: skip
        self._pruner.hook_copies(_mask_as, add_cuts_)
        if self.live:
            check_holders(pl_module, target, self._pruner.cuttable)
            prepare_rewrap(trainer, add_cuts_)
        self.preview = self._pruner.preview
        if trainer.is_global_zero:
            from rich import print as show

            show(self.preview.rich())

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Mask what an earlier part of the fit removed, and what goes at its start."""
        self._seen, self._checked = trainer.global_step, not self.live
        self._clock = StepClock()
        self._fitted.hook_copies(_mask_as, add_cuts_)
        self._fitted.mask()
        self._update_if_due(trainer)
        tried = trainer.fast_dev_run  # type: ignore[attr-defined]
        if self.live and not tried and PruneSettings.cuts != self.cuts > self._updates.length:
            raise UserError(
                f"cuts={self.cuts}: the ramp has {self._updates.length:g} steps; cut less often, or set end later"
            )

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Note what the gradients say of each channel, where the score asks for it."""
        if self.settings.score == "taylor" and not self._updates.ended:
            self._fitted.accumulate_gradients()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Zero what the optimizer has revived, and remove more where an update is due."""
        pruner, last = self._fitted, is_last_step(trainer)
        self._clock.count(batch, stepped=trainer.global_step != self._seen)
        if trainer.global_step != self._seen or last:
            self._seen = trainer.global_step
            pruner.zero()
            if not self._checked:
                self._checked = True
                check_state(optimizers_of(pl_module, trainer.optimizers), {p: p.shape for p in pl_module.parameters()})
            if self._update_if_due(trainer, last=last):
                kept = {f"prune/kept/{g.name}": g.width_after / g.width_before for g in pruner.plan.groups}
                log_now(trainer, {**kept, **({"prune/width": pruner.width} if self.live else {})})
        if logs_now(trainer):
            values = {"prune/amount": self.settings.amount * pruner.ramp, "prune/sparsity": pruner.plan.sparsity}
            pl_module.log_dict({**values, "prune/macs": pruner.plan.saved["macs"], **self._clock.look()})
            if self.live:
                pl_module.log("prune/width", pruner.width, prog_bar=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note where the fit stopped before the ramp was over."""
        ramp = self._fitted.ramp
        if ramp < 1.0 and fell_short(trainer):
            done, total = fit_position(trainer)
            self._unfinished = (
                f"the fit stopped after {done} of {total} steps, before end={self.end} of Prune: "
                f"{self.settings.amount * ramp:.1%} of the {self.settings.target} were pruned, "
                f"{self.settings.amount:.1%} were asked for; let it run longer (EarlyStopping, max_time), "
                "or set end earlier"
            )

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Mask what was loaded, or what others have averaged."""
        self._mask_loaded(pl_module)
        if self._pruner is not None:
            self._pruner.mask_copies()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Mask what was loaded."""
        self._mask_loaded(pl_module)

    on_predict_start = on_test_start

    def on_validation_batch_start(self, *_: Any) -> None:
        """Mask the weights that a callback has swapped in."""
        if self._pruner is not None:
            self._pruner.mask_again()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let nobody's average bring back what is masked."""
        if self._pruner is not None:
            self._pruner.mask_state_(checkpoint["state_dict"])
        for key in {"state_dict", "current_model_state"} & checkpoint.keys():  # the latter is of WeightAveraging
            add_cuts_(pl_module, checkpoint[key])

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Be there when averages that other callbacks have made since ``setup`` are loaded."""
        if self._pruner is not None:
            self._pruner.hook_copies(_mask_as, add_cuts_)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Zero once more what a callback that averages weights over the fit has put back."""
        if self._pruner is not None:
            self._pruner.mask_again()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let go of the model.

        Raises:
            UserError: if the fit stopped before the ramp was over; all else of the fit is done and saved by then.
        """
        if self._loading is not None:
            self._loading.remove()
        if stage != "fit" or self._pruner is None:
            return
        self._pruner.finish()
        self._plan, self._state = self._pruner.plan, {**self._pruner.state_dict(), "gone": None}
        self._pruner = None
        unfinished, self._unfinished = self._unfinished, None
        if unfinished is not None:
            raise UserError(unfinished)

    def state_dict(self) -> dict[str, Any]:
        """Return the current plan, when it was made, and what the next one is made from."""
        known = self._state if self._pruner is None else self._pruner.state_dict()
        if not known:
            return {}
        return {"plan": known["plan"], **self._updates.state_dict(), **known, "soft": self._soft_now}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the plan of a checkpoint.

        Raises:
            UserError: in a fit, if the model has other groups than that plan.
        """
        if not state_dict:
            return
        self._updates.load_state_dict(state_dict)
        self._loaded = not state_dict.get("soft", False)
        if self._pruner is not None:
            self._pruner.load_state_dict(state_dict, soft=self._soft_now)
        else:
            self._plan = Plan.from_json(state_dict["plan"])
            self._state = {key: state_dict[key] for key in ("plan", "findings", "evidence")} | {"gone": None}

    @property
    def _fitted(self) -> Pruner:
        """What works on the model, from ``setup`` to ``teardown`` of a fit."""
        if self._pruner is None:
            raise RuntimeError("Prune.setup has not run for a fit")
        return self._pruner

    @property
    def _soft_now(self) -> bool:
        return self.soft and not self._updates.ended

    def _new_updates(self) -> Updates:
        return Updates(begin=self.begin, end=self.end, schedule=self.schedule, repeat=self.soft)

    def _update_if_due(self, trainer: L.Trainer, *, last: bool = False) -> bool:
        pruner, updates = self._fitted, self._updates
        due = updates.reached(*fit_position(trainer), last=last)
        if due is None:
            return False
        ramp, last = updates.ramp_at(due, pruner.ramp), updates.is_last(due)
        cut = self.live and updates.cuts_at(pruner.ramp, ramp, due, self.cuts)
        slices = pruner.update(ramp, final=last, cut=cut)
        updates.made(due)
        if slices:
            slice_state_(optimizers_of(trainer.lightning_module, trainer.optimizers), slices)
            rewrap_(trainer)
        return True

    def _mask_loaded(self, pl_module: L.LightningModule) -> None:
        """Mask as the checkpoint's plan says, in a stage that has none of its own."""
        active = self._pruner is not None and self._pruner.active
        if self._loaded and self.plan is not None and not active:
            mask_(pl_module, self.plan)
            self._loaded = False


@before_loading
def _prepare(module: nn.Module, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    state_dict = take_shapes_(module, state_dict)
    restore_masks_(module, state_dict)
    return state_dict


def _mask_as(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Cut ``module``, and mask its norms, as a state dict says that is about to be loaded."""
    kept = take_shapes_(module, state_dict, prefix)
    for key in state_dict.keys() - kept.keys():
        del state_dict[key]
    restore_masks_(module, {n.removeprefix(prefix): t for n, t in state_dict.items() if n.startswith(prefix)})
