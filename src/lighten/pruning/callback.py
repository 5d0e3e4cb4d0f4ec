"""When: a callback that masks more and more channels while the model trains."""

import bisect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from lighten.errors import UserError
from lighten.pruning.copies import Copies, mask_state_
from lighten.pruning.cost import Costs, costs_of
from lighten.pruning.criterion import first_order
from lighten.pruning.decide import Findings, decide, settle, study
from lighten.pruning.groups import Structure
from lighten.pruning.mask import Masks, mask_, mask_filters_, tensors_of
from lighten.pruning.norms import restore_masks_
from lighten.pruning.plan import Plan
from lighten.pruning.settings import PruneSettings, Settings, check_times
from lighten.schedule import ramp
from lighten.training.example_inputs import example_calls, find_part
from lighten.training.loading import before_loading
from lighten.training.progress import fell_short, fit_position, logs_now
from lighten.training.record import log_now
from lighten.utils.inputs import ExampleInput, as_call

UPDATES = 30
"""How often at most the choice is made again over the ramp."""

SHARDED = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)


class Prune(L.Callback):
    """Gradually remove whole channels during the fit, by zero; :func:`~lighten.pruning.shrink` then cuts them.

    Works on any LightningModule. Groups are found, tried and printed in ``setup``. From ``begin`` to ``end`` the
    removed share rises to ``amount``, in at most 30 updates evenly spaced in optimizer steps. What is removed stays
    removed: it is zeroed again after every optimizer step. Rank zero decides for all. Logs ``prune/amount`` (asked
    now), ``prune/sparsity`` (share of the channels that can be pruned and are) and ``prune/macs`` (share saved); with
    each update also ``prune/kept/<group>``, the share of each group's channels that stay.

    Args:
        amount: share of ``target`` to remove, in (0, 1).
        score: as for :func:`~lighten.pruning.plan_pruning`, like ``scope``, ``target``, ``align`` and ``rate_norm``;
            ``"taylor"`` adds up the gradients of all steps since the last update, as the optimizer gets them.
        begin: share of the fit's optimizer steps at which the ramp starts; of those that are left, where the fit goes
            on from a checkpoint without pruning.
        end: share at which ``amount`` is reached.
        scope: see there; ``"sensitivity"`` is probed at the first update, on ``calibration``.
        exclude: names or patterns of layers to leave alone, relative to the pruned module.
        schedule: how the share rises: ``"cubic"`` (Zhu & Gupta 2017), ``"linear"``, ``"exponential"`` or
            ``"one_shot"``, all of it at ``begin``.
        soft: until ``end`` zero the removed filters at each update alone, so that they can grow again and be chosen
            anew (Soft Filter Pruning, He et al. 2018).
        target: see there; widths for ``"latency"`` are measured in ``setup``.
        align: see there.
        rate_norm: see there.
        calibration: inputs of the pruned module for ``"sensitivity"``; by default 128 samples of the train data.
        module: name of the part to prune; by default ``student`` where there is one, else all.
        of: see there; what an earlier fit has masked stays masked.

    Attributes:
        plan: the current plan during the fit, the final one after it; ``None`` before.
        preview: what the whole ``amount`` would remove, with the weights at the start.

    Raises:
        UserError: for settings out of range; in ``setup`` for what :func:`~lighten.pruning.plan_pruning` refuses; after
            the fit, if it stopped before the ramp was over.

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
        module: str | None = None,
        of: str = Settings.of,
    ) -> None:
        self.settings = Settings(
            amount, score=score, scope=scope, target=target, align=align, rate_norm=rate_norm, of=of
        )
        check_times(begin, end, schedule)
        self.begin, self.end, self.exclude, self.module = begin, end, tuple(exclude), module
        self.schedule, self.soft = schedule, soft
        self.calibration = None if calibration is None else [as_call(given) for given in calibration]
        self._calibrated = calibration is not None
        self._findings: Findings | None = None
        self._evidence: dict[str, Tensor] = {}
        self.plan: Plan | None = None
        self.preview: Plan | None = None
        self._structure: Structure | None = None
        self._costs: Costs | None = None
        self._target: nn.Module | None = None
        self._copies: Copies | None = None
        self._loading: Any = None
        self._loaded = False
        self._gone: tuple[tuple[int, ...], ...] | None = None
        self._precision: Any = None
        self._part = ""
        self._masks: Masks | None = None
        self._updates: list[int] = []
        self._steps: float = 0
        self._from = 0
        self._ended = False
        self._resumed = False
        self._unfinished: str | None = None
        self._seen = 0
        self._updated = -1

    @property
    def state_key(self) -> str:
        """Tell several of these apart in a checkpoint, by the part that they prune."""
        return self._generate_state_key(module=self.module)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the groups, before any strategy wraps the model, and show what will go."""
        self._loaded, self._gone = False, None
        self._loading = pl_module.register_load_state_dict_pre_hook(_mask_as)
        if stage != "fit":
            return
        if isinstance(trainer.strategy, SHARDED):
            raise UserError(
                f"Prune needs whole weights on every device, {type(trainer.strategy).__name__} shards them; use ddp"
            )
        self._part, self._target, call = find_part(trainer, pl_module, self.module)
        self._structure = study(self._target, call, exclude=self.exclude)
        self._costs = costs_of(self._structure)
        if self.settings.scope == "sensitivity" and not self._calibrated:
            self.calibration = example_calls(trainer, pl_module, self._target)
        self.plan, self._updated, self._findings, self._evidence = None, -1, None, {}
        self._ended, self._resumed, self._updates = False, False, []
        self._copies = Copies((c for c in trainer.callbacks if c is not self), pl_module, self._part)  # type: ignore[attr-defined]
        self._copies.before_loading(_mask_as)
        self._precision = trainer.precision
        self.preview = self._decide(trainer, 1.0)
        if self.settings.scope == "sensitivity":
            self._findings = None  # probed again when the first channels go
        self.plan = self._decide(trainer, 0.0)
        if trainer.is_global_zero:
            from rich import print as show

            show(self.preview.rich())

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lay the updates out over the fit, and mask what an earlier part of it removed."""
        assert self._structure is not None
        assert self._target is not None
        assert self.plan is not None
        planned, found = ([g.name for g in x.groups] for x in (self.plan, self._structure))
        if planned != found:
            raise UserError(
                f"the checkpoint's plan has groups {planned[:3]}…, this model {found[:3]}…; "
                "resume with the same model, module and exclude"
            )
        if self._gone is not None:
            self._structure = replace(self._structure, gone=self._gone)
        if not self._resumed:
            self._from = fit_position(trainer).done
        self._resumed, self._steps = False, 0
        self._seen = trainer.global_step
        self._mask()
        self._update_to(trainer, self._reached(trainer))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Note what the gradients say of each channel, where the score asks for it."""
        if self.settings.score != "taylor" or self._ended:
            return
        assert self._structure is not None
        assert self._target is not None
        tensors = tensors_of(self._target)
        for group in self._structure.groups:
            if all(tensors[s.tensor].grad is None for s in group.positions if s.role == "filter"):
                continue  # another optimizer's step
            seen = first_order(group, tensors)
            before = self._evidence.get(group.name)  # of a checkpoint: on the CPU
            self._evidence[group.name] = seen if before is None else before.to(seen.device) + seen

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Zero what the optimizer has revived, and remove more where an update is due."""
        assert self._masks is not None
        assert self.plan is not None
        if trainer.global_step != self._seen or _is_last_step(trainer):
            self._seen = trainer.global_step
            if not self._soft_now:
                self._masks.apply_()
            self._update_if_due(trainer)
        if logs_now(trainer):
            values = {"prune/amount": self._asked, "prune/sparsity": self.plan.sparsity}
            pl_module.log_dict({**values, "prune/macs": self.plan.saved["macs"]})

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note where the fit stopped before the ramp was over."""
        if self.plan is not None and self.plan.settings["strength"] < 1.0 and fell_short(trainer):
            done, total = fit_position(trainer)
            self._unfinished = (
                f"the fit stopped after {done} of {total} steps, before end={self.end} of Prune: {self._asked:.1%} of "
                f"the {self.settings.target} were pruned, {self.settings.amount:.1%} were asked for; let it run longer "
                "(EarlyStopping, max_time), or set end earlier"
            )

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Mask what was loaded, or what others have averaged."""
        self._mask_loaded(pl_module)
        self._mask_copies()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Mask what was loaded."""
        self._mask_loaded(pl_module)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Mask what was loaded."""
        self._mask_loaded(pl_module)

    def on_validation_batch_start(self, *_: Any) -> None:
        """Mask the weights that a callback has swapped in."""
        self._mask_again()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let nobody's average bring back what is masked."""
        if self._masks is not None and not self._soft_now:
            assert self._target is not None
            assert self.plan is not None
            self._mask_copies()
            prefix = f"{self._part}." if self._part else ""
            mask_state_(checkpoint["state_dict"], self._target, self.plan, prefix)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Zero once more what a callback that averages weights over the fit has put back."""
        self._mask_again()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let go of the model.

        Raises:
            UserError: if the fit stopped before the ramp was over; all else of the fit is done and saved by then.
        """
        if self._loading is not None:
            self._loading.remove()
        if stage != "fit":
            return
        self._mask_again()
        self._masks = self._target = self._structure = self._copies = None
        unfinished, self._unfinished = self._unfinished, None
        if unfinished is not None:
            raise UserError(unfinished)

    def state_dict(self) -> dict[str, Any]:
        """Return the current plan, when it was made, and what the next one is made from."""
        if self.plan is None:
            return {}
        found = None if self._findings is None else json.dumps(asdict(self._findings))
        evidence = {name: seen.cpu() for name, seen in self._evidence.items()}
        gone = None if self._structure is None else [list(channels) for channels in self._structure.gone]
        return {
            "plan": self.plan.to_json(), "updated": self._updated, "ended": self._ended, "from": self._from,
            "findings": found, "evidence": evidence, "gone": gone, "soft": self._soft_now,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the plan of a checkpoint."""
        if state_dict:
            self.plan, self._updated = Plan.from_json(state_dict["plan"]), state_dict["updated"]
            self._ended, self._from = state_dict["ended"], state_dict["from"]
            self._resumed = True
            self._findings = _read_findings(state_dict["findings"])
            self._evidence = dict(state_dict["evidence"])
            gone = state_dict.get("gone")
            self._gone = None if gone is None else tuple(tuple(channels) for channels in gone)
            self._loaded = not state_dict.get("soft", False)

    @property
    def _hash(self) -> str | None:
        return None if self.plan is None else self.plan.hash

    @property
    def _asked(self) -> float:
        return 0.0 if self.plan is None else self.settings.amount * self.plan.settings["strength"]

    @property
    def _soft_now(self) -> bool:
        return self.soft and not self._ended

    def _lay_out(self) -> list[int]:
        """Return the optimizer steps after which the choice is made."""
        if not math.isfinite(self._steps):
            return []
        first = math.floor(self.begin * self._steps)
        if self.schedule == "one_shot" and not self.soft:
            return [first]
        updates = update_steps(int(self._steps), begin=self.begin, end=self.end)
        return sorted({first, *updates}) if self.schedule == "one_shot" else updates

    def _update_if_due(self, trainer: L.Trainer) -> None:
        before = self._updated
        reached = self._reached(trainer)
        self._update_to(trainer, self._updates[-1] if _is_last_step(trainer) else reached)
        if self.plan is not None and self._updated > before:
            log_now(trainer, {f"prune/kept/{g.name}": g.width_after / g.width_before for g in self.plan.groups})

    def _update_to(self, trainer: L.Trainer, due: int) -> None:
        if due > self._updated and not self._ended:
            self.plan = self._decide(trainer, self._strength(due))
            self._updated, self._evidence = due, {}
            self._ended = due == self._updates[-1]
            self._mask()

    def _reached(self, trainer: L.Trainer) -> int:
        """Return the last update that the fit has come to, or -1, by what its length is known to be now."""
        done, total = fit_position(trainer)
        if total - self._from != self._steps:
            self._steps = total - self._from
            self._updates = self._lay_out()
        reached = bisect.bisect_right(self._updates, done - self._from)
        return self._updates[reached - 1] if reached else -1

    def _strength(self, due: int) -> float:
        if due == self._updates[-1] or self.schedule == "one_shot":
            return 1.0
        assert self.plan is not None
        now = ramp(due / self._steps, begin=self.begin, end=self.end, shape=self.schedule)
        return max(now, self.plan.settings["strength"])

    def _mask_again(self) -> None:
        """Zero the masked places, and leave channels out of norms, as somebody may have put back others."""
        if self._masks is not None and not self._soft_now:
            assert self._target is not None
            assert self.plan is not None
            mask_(self._target, self.plan)

    def _mask_copies(self) -> None:
        if self._masks is not None and not self._soft_now:
            assert self._copies is not None
            assert self.plan is not None
            self._copies.mask_(self.plan)

    def _mask_loaded(self, pl_module: L.LightningModule) -> None:
        """Mask as the checkpoint's plan says, in a stage that has none of its own."""
        if self._loaded and self._masks is None and self.plan is not None:
            mask_(pl_module, self.plan)
            self._loaded = False

    def _mask(self) -> None:
        assert self._target is not None
        assert self.plan is not None
        (mask_filters_ if self._soft_now else mask_)(self._target, self.plan)
        self._masks = Masks(self._target, self.plan)
        self._mask_copies()

    def _decide(self, trainer: L.Trainer, strength: float) -> Plan:
        """Decide on rank zero; return the plan, or raise the error, on every rank.

        Raises:
            UserError: what the decision raised.
            RuntimeError: if ranks held different plans.
        """
        if trainer.world_size == 1:
            plan, self._findings = self._choose(strength)
            return plan
        answer = json.loads(trainer.strategy.broadcast(self._answer(strength) if trainer.is_global_zero else ""))
        if not trainer.strategy.reduce_boolean_decision(answer["before"] == self._hash, all=True):
            raise RuntimeError(
                f"ranks hold different pruning plans at step {trainer.global_step}: their weights have drifted apart; "
                "resume from the last checkpoint"
            )
        if "error" in answer:
            raise UserError(answer["error"])
        self._findings = _read_findings(answer["findings"])
        return Plan.from_json(answer["plan"])

    def _answer(self, strength: float) -> str:
        try:
            plan, findings = self._choose(strength)
        except UserError as error:
            return json.dumps({"before": self._hash, "error": str(error)})
        found = None if findings is None else json.dumps(asdict(findings))
        return json.dumps({"before": self._hash, "plan": plan.to_json(), "findings": found})

    def _choose(self, strength: float) -> tuple[Plan, Findings | None]:
        assert self._structure is not None
        assert self._target is not None
        evidence, findings = self._known_evidence(), self._findings
        if findings is None and (strength > 0.0 or self.settings.target == "latency"):
            findings = settle(
                self._structure, self._target, self.settings, calibration=self.calibration, evidence=evidence
            )
        plan = decide(
            self._structure, self._target, self.settings, findings=findings, strength=strength,
            after=None if self.soft else self.plan, evidence=evidence, costs=self._costs,
        )  # fmt: skip
        settings = {**plan.settings, "precision": str(self._precision)}
        return replace(plan, part=self._part, settings=settings), findings

    def _known_evidence(self) -> dict[str, Tensor] | None:
        """Return the first-order scores seen so far; groups that no gradient has reached score zero."""
        if self.settings.score != "taylor":
            return None
        if not self._updates:
            return {}  # nothing is known before the fit
        assert self._structure is not None
        return {g.name: self._evidence.get(g.name, torch.zeros(g.width)) for g in self._structure.groups}


@before_loading
def _prepare(module: nn.Module, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    restore_masks_(module, state_dict)
    return state_dict


def _mask_as(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Mask the norms of ``module`` as a state dict says that is about to be loaded."""
    restore_masks_(module, {n.removeprefix(prefix): t for n, t in state_dict.items() if n.startswith(prefix)})


def _read_findings(text: str | None) -> Findings | None:
    if text is None:
        return None
    found = json.loads(text)
    curves = tuple(tuple((share, damage) for share, damage in curve) for curve in found["curves"])
    return Findings(tuple(found["counts"]), curves, found["latency"])


def update_steps(steps: int, *, begin: float, end: float, most: int = UPDATES) -> list[int]:
    """Return the optimizer steps after which more is removed: at most ``most``, evenly spaced, the last at ``end``.

    Args:
        steps: optimizer steps of the whole fit.
        begin: share of the fit at which the ramp starts; nothing is removed there yet.
        end: share at which it is over; at least one step is taken before.
        most: number of updates.
    """
    first, last = math.floor(begin * steps), max(1, round(end * steps))
    count = max(1, min(most, last - first))
    return [last - round((count - i) * (last - first) / count) for i in range(1, count + 1)]


def _is_last_step(trainer: L.Trainer) -> bool:
    """Say whether no optimizer step follows, however many were foreseen."""
    by_epochs = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 == trainer.max_epochs
    return (by_epochs and trainer.is_last_batch) or 0 <= trainer.max_steps <= trainer.global_step
