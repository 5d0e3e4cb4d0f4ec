"""When: a callback that masks more and more channels while the model trains."""

import bisect
import json
import math
import warnings
from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn

from lighten.errors import UserError
from lighten.names import find_module
from lighten.pruning.decide import check_settings, decide, study
from lighten.pruning.groups import Structure
from lighten.pruning.mask import Masks, mask_
from lighten.pruning.plan import Plan
from lighten.schedule import check_ramp, ramp
from lighten.training.example import example_call
from lighten.training.progress import fit_steps

UPDATES = 30
"""How often at most the choice is made again over the ramp."""

SHARDED = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)


class Prune(L.Callback):
    """Gradually remove whole channels during the fit, by zero; :func:`~lighten.pruning.shrink` then cuts them.

    Works on any LightningModule. Groups are found, tried and printed in ``setup``. From ``begin`` to ``end`` the
    removed share rises to ``amount`` (cubic, Zhu & Gupta 2017), in at most 30 updates evenly spaced in optimizer
    steps. What is removed stays removed: it is zeroed again after every optimizer step. Rank zero decides for all.
    Logs ``prune/amount`` (asked now) and ``prune/sparsity`` (share of the channels that can be pruned and are).

    Args:
        amount: share of channels to remove, in (0, 1).
        score: ``"fpgm"`` or ``"magnitude"``.
        begin: share of the fit's optimizer steps at which the ramp starts.
        end: share at which ``amount`` is reached.
        scope: ``"uniform"``, the share of every group, or ``"global"``.
        exclude: names or patterns of layers to leave alone, relative to the pruned module.
        align: make widths multiples of this where they can be.
        module: name of the part to prune; by default ``student`` where there is one, else all.

    Attributes:
        plan: the current plan during the fit, the final one after it; ``None`` before.
        preview: what the whole ``amount`` would remove, with the weights at the start.

    Raises:
        UserError: for settings out of range; in ``setup`` for what :func:`~lighten.pruning.plan_pruning` refuses.

    Example:
        >>> prune = Prune(0.5, begin=0.1, end=0.6)
        >>> trainer = L.Trainer(max_epochs=30, callbacks=[prune])  # doctest: +SKIP
    """

    def __init__(
        self,
        amount: float,
        *,
        score: str = "fpgm",
        begin: float = 0.1,
        end: float = 0.6,
        scope: str = "uniform",
        exclude: Sequence[str] = (),
        align: int = 1,
        module: str | None = None,
    ) -> None:
        check_settings(amount, score=score, scope=scope, align=align)
        check_ramp(begin=begin, end=end)
        self.amount, self.score, self.scope, self.align = amount, score, scope, align
        self.begin, self.end, self.exclude, self.module = begin, end, tuple(exclude), module
        self.plan: Plan | None = None
        self.preview: Plan | None = None
        self._structure: Structure | None = None
        self._target: nn.Module | None = None
        self._masks: Masks | None = None
        self._updates: list[int] = []
        self._steps = 0
        self._seen = 0
        self._updated = -1

    @property
    def state_key(self) -> str:
        """Tell several of these apart in a checkpoint, by the part that they prune."""
        return self._generate_state_key(module=self.module)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the groups, before any strategy wraps the model, and show what will go."""
        if stage != "fit":
            return
        if isinstance(trainer.strategy, SHARDED):
            raise UserError(
                f"Prune needs whole weights on every device, {type(trainer.strategy).__name__} shards them; use ddp"
            )
        _, self._target = find_module(pl_module, self.module)
        call = example_call(trainer, pl_module, self._target)
        self._structure = study(self._target, call, exclude=self.exclude)
        self.plan, self._updated = None, -1
        self.preview = self._decide(trainer, 1.0)
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
        self._steps = fit_steps(trainer)
        self._updates = update_steps(self._steps, begin=self.begin, end=self.end)
        self._seen = trainer.global_step
        self._mask()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Zero what the optimizer has revived, and remove more where an update is due."""
        assert self._masks is not None
        assert self.plan is not None
        if trainer.global_step != self._seen:
            self._seen = trainer.global_step
            self._masks.apply_()
            self._update_if_due(trainer)
        pl_module.log_dict({"prune/amount": self._asked, "prune/sparsity": self.plan.sparsity})

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say so where the fit stopped before the ramp was over."""
        if self.plan is not None and self.plan.settings["strength"] < 1.0 and not trainer.interrupted:
            warnings.warn(
                f"the fit stopped after {trainer.global_step} of {self._steps} steps, before end={self.end}: "
                f"{self._asked:.1%} of the channels were pruned, {self.amount:.1%} were asked for",
                stacklevel=2,
            )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let go of the model."""
        if stage == "fit":
            self._masks = self._target = self._structure = None

    def state_dict(self) -> dict[str, Any]:
        """Return the current plan, and when it was made."""
        return {} if self.plan is None else {"plan": self.plan.to_json(), "updated": self._updated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the plan of a checkpoint."""
        if state_dict:
            self.plan, self._updated = Plan.from_json(state_dict["plan"]), state_dict["updated"]

    @property
    def _hash(self) -> str | None:
        return None if self.plan is None else self.plan.hash

    @property
    def _asked(self) -> float:
        return 0.0 if self.plan is None else self.amount * self.plan.settings["strength"]

    def _update_if_due(self, trainer: L.Trainer) -> None:
        due = self._due(trainer)
        if due > self._updated:
            last = due == self._updates[-1]
            self.plan = self._decide(trainer, 1.0 if last else ramp(due / self._steps, begin=self.begin, end=self.end))
            self._updated = due
            self._mask()

    def _due(self, trainer: L.Trainer) -> int:
        if _is_last_step(trainer):
            return self._updates[-1]
        reached = bisect.bisect_right(self._updates, trainer.global_step)
        return self._updates[reached - 1] if reached else -1

    def _mask(self) -> None:
        assert self._target is not None
        assert self.plan is not None
        mask_(self._target, self.plan)
        self._masks = Masks(self._target, self.plan)

    def _decide(self, trainer: L.Trainer, strength: float) -> Plan:
        """Decide on rank zero; return the plan, or raise the error, on every rank.

        Raises:
            UserError: what the decision raised.
            RuntimeError: if ranks held different plans.
        """
        answer = json.loads(trainer.strategy.broadcast(self._answer(strength) if trainer.is_global_zero else ""))
        if not trainer.strategy.reduce_boolean_decision(answer["before"] == self._hash, all=True):
            raise RuntimeError(
                f"ranks hold different pruning plans at step {trainer.global_step}: their weights have drifted apart; "
                "resume from the last checkpoint"
            )
        if "error" in answer:
            raise UserError(answer["error"])
        return Plan.from_json(answer["plan"])

    def _answer(self, strength: float) -> str:
        assert self._structure is not None
        assert self._target is not None
        settings: dict[str, Any] = {"score": self.score, "scope": self.scope, "align": self.align}
        try:
            plan = decide(self._structure, self._target, self.amount, **settings, strength=strength, after=self.plan)
        except UserError as error:
            return json.dumps({"before": self._hash, "error": str(error)})
        return json.dumps({"before": self._hash, "plan": plan.to_json()})


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
