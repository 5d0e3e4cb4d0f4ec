"""Gradual pruning of a model during training, in plain PyTorch."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lighten.errors import UserError, first_line
from lighten.pruning.copies import Copies, mask_state_
from lighten.pruning.cost import costs_of
from lighten.pruning.damage import DamageCurve
from lighten.pruning.earlier import compose
from lighten.pruning.groups import Structure
from lighten.pruning.importance import first_order
from lighten.pruning.live import laid_out, lay_out_, live_cut_of, remaining, whole_tensors
from lighten.pruning.live_cut import cut_live_, prove_cut_
from lighten.pruning.mask import Masks, mask_, mask_filters_
from lighten.pruning.plan import OF_MODULES, Plan
from lighten.pruning.planner import make_plan
from lighten.pruning.settings import Settings
from lighten.pruning.widths import Allocation, allocate_widths
from lighten.pruning.worthwhile import worthwhile
from lighten.utils.compression import record_
from lighten.utils.inputs import Call
from lighten.utils.optimizer_state import Slices

Decision = tuple[Plan, Allocation | None]
"""A plan, and the allocation that it was made with."""

Proof = Callable[[bool], bool]
"""Takes whether something holds here; returns whether it does on every rank."""

Agree = Callable[[str | None, Callable[[], Decision]], Decision]
"""Takes the hash of the plan so far and a function that decides; returns its decision, the same one on every rank."""


class Pruner:
    """Removes more and more channels of a model, by zero or by cuts.

    Args:
        model: the model that trains, or the part of it that is pruned.
        structure: of this model.
        settings: as given.
        copies: of the model's weights, kept by others: they lose the same channels.
        calibration: calls for the scope ``sensitivity``.
        curves: what was measured for it before, by group, instead.
        soft: until the final update zero the removed filters at each update alone, so that they can grow again.
        part: name of ``model`` in the module that trains.
        precision: of the training, for the plans.
        agree: how ranks come to one decision.
        everywhere: how ranks learn whether a cut holds on all of them.

    Attributes:
        plan: the current one; at first it removes nothing.
        preview: what the whole amount would remove, with the weights at the start.

    Raises:
        UserError: as :func:`~lighten.pruning.plan_pruning`.

    Example:
        >>> from lighten.pruning.planner import trace_structure
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> pruner = Pruner(model, trace_structure(model, ((torch.randn(1, 4),), {})), Settings(0.5))
        >>> pruner.update(0.5, final=False)
        >>> pruner.plan.sparsity, pruner.preview.sparsity
        (0.25, 0.5)
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        settings: Settings,
        *,
        copies: Copies | None = None,
        calibration: Sequence[Call] | None = None,
        curves: Mapping[str, DamageCurve] | None = None,
        soft: bool = False,
        part: str = "",
        precision: str = "",
        agree: Agree = lambda before, decide: decide(),
        everywhere: Proof = lambda holds: holds,
    ) -> None:
        self._model, self._structure, self._settings = model, structure, settings
        self._copies = Copies((), model, "") if copies is None else copies
        self._calibration, self._curves = calibration, curves
        self._part, self._precision, self._agree = part, precision, agree
        self._costs, self._everywhere = costs_of(structure), everywhere
        self._regrows = self.soft = soft
        self._allocation: Allocation | None = None
        self._gradients: dict[str, Tensor] = {}
        self._masks: Masks | None = None
        self.preview, self._allocation = agree(None, lambda: self._decide(1.0, None))
        if settings.scope == "sensitivity":
            self._allocation = None  # measured again when the first channels go
        self.plan, self._allocation = agree(None, lambda: self._decide(0.0, None))

    @property
    def ramp(self) -> float:
        """Share of the amount that the current plan removes."""
        return float(self.plan.settings["strength"])

    @property
    def active(self) -> bool:
        """Whether masks are on the model: from the first :meth:`mask` on."""
        return self._masks is not None

    @property
    def width(self) -> float:
        """Share of the prunable channels that are there: what is masked counts, what is cut does not."""
        live = live_cut_of(self._model)
        if live is None:
            return 1.0
        cut = {(slot.tensor, slot.dim): len(c.removed) for c in live.plan.cuts for slot in c.slots}
        firsts = [(next(s for s in group.positions if s.role == "filter"), group) for group in self._structure.groups]
        gone = sum(
            cut.get((slot.tensor, slot.dim), 0) / group.positions[slot].shape[1] for slot, group in firsts
        )  # fmt: skip
        return 1.0 - gone / sum(group.width for group in self._structure.groups)

    def mask(self) -> None:
        """Mask what the current plan removes, in the model and in copies of it."""
        due = remaining(self._model, self.plan)
        (mask_filters_ if self.soft else mask_)(self._model, due)
        self._masks = Masks(self._model, due)
        self.mask_copies()

    def update(self, ramp: float, *, final: bool, cut: bool = False) -> Slices:
        """Decide again what goes, and mask or cut that.

        Args:
            ramp: share of the amount to remove now.
            final: no update follows: from now on what is removed stays zero.
            cut: cut what goes out of the model, and out of copies that follow it.

        Returns:
            What stays of the parameters that were cut.

        Raises:
            UserError: if weights are not finite, or the amount cannot be reached.
        """
        before = None if self._regrows else self.plan
        self.plan, self._allocation = self._agree(self.plan.hash, lambda: self._decide(ramp, before, exact=cut))
        self._gradients = {}
        self.soft = self.soft and not final
        self.mask()
        return self.cut(final=final) if cut else {}

    def cut(self, *, final: bool = True) -> Slices:
        """Cut what the current plan removes, in place, where the model then puts out what the masked one does.

        Before the final cut, what is not worth it stays masked.

        Args:
            final: whether a cut that does not hold is an error; else it is left out, with a warning, and masks stay.

        Returns:
            What stays of the parameters that were cut.

        Raises:
            RuntimeError: if the cut would change the network.
        """
        plan = self.plan if final else worthwhile(self._structure, self._model, self.plan)
        due, live = remaining(self._model, plan), live_cut_of(self._model)
        if not due.cuts:
            return {}
        following = self._copies.following()
        try:
            slices = prove_cut_(self._model, plan, of=self.plan, everywhere=self._everywhere)
        except RuntimeError as error:
            lay_out_(self._model)
            if live is not None:
                cut_live_(self._model, live.plan)
            self.mask()
            if final:
                raise
            warnings.warn(f"prune: {first_line(error)}; masked until the next cut", stacklevel=2)
            return {}
        for copy in following:
            copy.cut_(due, self._model)
        self.mask()
        return slices

    def zero(self) -> None:
        """Zero what an optimizer step has revived."""
        if self._masks is not None and not self.soft:
            self._masks.apply_()

    def mask_again(self) -> None:
        """Zero the masked places, and leave channels out of norms, as somebody may have put back others."""
        if self.active and not self.soft:
            mask_(self._model, self.plan)

    def mask_copies(self) -> None:
        """Mask the copies that others keep."""
        if self.active and not self.soft:
            self._copies.mask_(remaining(self._model, self.plan))

    def hook_copies(self, before_loading: Callable[..., None], after_saving: Callable[..., None]) -> None:
        """Have hooks called as copies load and save; what is hooked already stays so."""
        self._copies.with_hooks(before_loading, after_saving)

    def mask_state_(self, state: dict[str, Any]) -> None:
        """Make a state dict of the module that trains that of the masked one, and mask the copies."""
        if self.active and not self.soft:
            self.mask_copies()
            prefix = f"{self._part}." if self._part else ""
            mask_state_(state, self._model, remaining(self._model, self.plan), prefix)

    def accumulate_gradients(self) -> None:
        """Add what the gradients of this step say of each channel."""
        tensors = whole_tensors(self._model)
        for group in self._structure.groups:
            if all(tensors[s.tensor].grad is None for s in group.positions if s.role == "filter"):
                continue  # another optimizer's step
            found = first_order(group, tensors)
            before = self._gradients.get(group.name)  # of a checkpoint: on the CPU
            self._gradients[group.name] = found if before is None else before.to(found.device) + found

    def finish(self) -> None:
        """Zero what somebody has put back, and note the whole plan where cuts have made it."""
        self.mask_again()
        live = live_cut_of(self._model)
        if live is not None and live.plan.hash == self.plan.hash:
            plan = self.plan if live.before is None else compose(live.before, self.plan)
            record_(self._model, live=replace(live, plan=self.plan), plan=plan)

    @property
    def cuttable(self) -> set[str]:
        """Names of the parameters that may lose channels."""
        return {
            slot.tensor for group in self._structure.groups for slot in group.positions if slot.role not in OF_MODULES
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the current plan, and what the next one is made from."""
        return {
            "plan": self.plan.to_json(),
            "findings": None if self._allocation is None else self._allocation.to_json(),
            "evidence": {name: found.cpu() for name, found in self._gradients.items()},
            "gone": [list(channels) for channels in self._structure.gone],
        }

    def load_state_dict(self, state: Mapping[str, Any], *, soft: bool) -> None:
        """Go on from a state that :meth:`state_dict` returned.

        Raises:
            UserError: if its plan has other groups.
        """
        plan = Plan.from_json(state["plan"])
        planned, found = ([group.name for group in groups] for groups in (plan.groups, self._structure.groups))
        if planned != found:
            raise UserError(
                f"the checkpoint's plan has groups {planned[:3]}…, this model {found[:3]}…; "
                "resume with the same model, module and exclude"
            )
        self.plan, self.soft = plan, soft
        self._allocation = None if state["findings"] is None else Allocation.from_json(state["findings"])
        self._gradients = dict(state["evidence"])
        if state.get("gone") is not None:
            self._structure = replace(self._structure, gone=tuple(tuple(channels) for channels in state["gone"]))

    def _decide(self, ramp: float, after: Plan | None, *, exact: bool = False) -> Decision:
        gradients, allocation = self._known_gradients(), self._allocation
        model = self._model if live_cut_of(self._model) is None else laid_out(self._model, share_weights=True)
        if allocation is None and (ramp > 0.0 or self._settings.target == "latency"):
            allocation = allocate_widths(
                self._structure, model, self._settings, calibration=self._calibration, curves=self._curves,
                accumulated_gradients=gradients,
            )  # fmt: skip
        plan = make_plan(
            self._structure, model, self._settings, allocation=allocation, ramp=ramp, after=after,
            accumulated_gradients=gradients, costs=self._costs, exact=exact,
        )  # fmt: skip
        settings = {**plan.settings, "precision": self._precision}
        return replace(plan, part=self._part, settings=settings), allocation

    def _known_gradients(self) -> dict[str, Tensor] | None:
        """Return the first-order scores seen so far; groups that no gradient has reached score zero."""
        if self._settings.score != "taylor":
            return None
        if not self.active:
            return {}  # nothing is known before the fit
        return {g.name: self._gradients.get(g.name, torch.zeros(g.width)) for g in self._structure.groups}
