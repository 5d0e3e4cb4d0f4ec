"""Pruning plans of a model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn

from lighten.errors import UserError
from lighten.pruning.allocate import Candidate, allocate
from lighten.pruning.candidates import GroupState, candidate_of, group_states, score_groups
from lighten.pruning.check import plain_copy
from lighten.pruning.cost import Costs, costs_of
from lighten.pruning.damage import DamageCurve
from lighten.pruning.earlier import with_earlier
from lighten.pruning.groups import Structure, find_groups
from lighten.pruning.importance import GroupScores
from lighten.pruning.loss_arguments import without_loss_arguments
from lighten.pruning.parts import NotTracedError, traceable_part
from lighten.pruning.plan import GroupPlan, Plan
from lighten.pruning.proportions import keep_proportions
from lighten.pruning.settings import PruneSettings, Settings
from lighten.pruning.trial import Trial
from lighten.pruning.verify import verify_groups, verify_plan
from lighten.pruning.widths import COSTS, Allocation, allocate_widths, share_of_target
from lighten.utils.inputs import Call, ExampleInput, as_call
from lighten.utils.long_work import long_work
from lighten.utils.preserve import preserved


def plan_pruning(
    model: nn.Module,
    example_input: ExampleInput,
    amount: float,
    *,
    score: str = PruneSettings.score,
    scope: str = PruneSettings.scope,
    target: str = PruneSettings.target,
    exclude: Sequence[str] = (),
    align: int = PruneSettings.align,
    rate_norm: float = PruneSettings.rate_norm,
    calibration: Iterable[ExampleInput] | None = None,
    of: str = Settings.of,
) -> Plan:
    """Decide which channels of ``model`` to remove. Nothing is cut.

    Inputs and outputs of the network keep their width. Channels that are coupled by residual additions,
    concatenations, depthwise and grouped convolutions, attention heads or flattening are removed together. What cannot
    be followed is not pruned, and the plan names it.

    Args:
        model: not wrapped for distributed training; modes and weights are not changed.
        example_input: a tensor, a tuple of positional arguments or a dict of keyword arguments to run it with.
        amount: share of ``target`` to remove, in (0, 1).
        score: which channels of a group are removed first, by their filters in all its layers: ``"fpgm"``,
            ``"magnitude"`` (L2), ``"l1"``, ``"mix"``, ``"bn_scale"``, ``"taylor"`` (from the weights' gradients),
            ``"random"``; see :mod:`lighten.pruning.score`. ``"auto"`` takes magnitude if the norms of the group
            fulfil :class:`~lighten.pruning.score.Norms`, otherwise FPGM.
        scope: ``"uniform"``, the same share of every group; ``"global"``, wherever scores are lowest; or
            ``"sensitivity"``, wherever it harms the outputs least for what it saves, as measured on ``calibration``.
        target: what ``amount`` is a share of: ``"channels"`` that can be removed, ``"macs"``, ``"parameters"``, or
            ``"latency"`` of the example's batch, measured in ONNX Runtime on one thread.
        exclude: names or patterns of layers not to prune, nor what is coupled to them.
        align: make widths multiples of this where possible.
        rate_norm: for ``"mix"``, the share that a norm lets pass.
        calibration: for ``"sensitivity"``, a few typical inputs, each as ``example_input``.
        of: for a model that was pruned before, what ``amount`` is a share of: the ``"present"`` model, without the
            channels that are masked or cut, or the ``"original"`` one.

    Raises:
        UserError: if a setting is out of range, a pattern matches no layer, the model is wrapped or cannot be traced,
            its weights are not finite, ``amount`` cannot be reached, or there is nothing to prune.

    Example:
        >>> from torch import nn, randn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> plan_pruning(net, randn(1, 3, 8, 8), amount=0.25).widths
        {'0': (8, 6), '2': (4, 4)}
    """
    settings = Settings(amount, score=score, scope=scope, target=target, align=align, rate_norm=rate_norm, of=of)
    with long_work("plan"):
        structure, trial = _traced(model, as_call(example_input), exclude)
        calls = None if calibration is None else [as_call(given) for given in calibration]
        allocation = allocate_widths(structure, model, settings, calibration=calls)
        return make_plan(structure, model, settings, allocation=allocation, trial=trial)


def trace_structure(model: nn.Module, call: Call, *, exclude: Sequence[str] = ()) -> Structure:
    """Return what can be pruned of ``model``, each group tried on a copy.

    Raises:
        UserError: as :func:`plan_pruning`; where nothing can be pruned, with the reasons.
    """
    return _traced(model, call, exclude)[0]


def _traced(model: nn.Module, call: Call, exclude: Sequence[str]) -> tuple[Structure, Trial]:
    call = without_loss_arguments(model, call)
    with long_work("plan") as report, preserved(model):
        report("traces the network", 0.0)
        found = keep_proportions(_groups_of(model, call, exclude))
        stage = f"tries {len(found.groups)} groups of channels"
        report(stage, 0.3)
        trial = Trial(model, found)
        structure = verify_groups(model, found, trial, on_progress=lambda done: report(stage, 0.3 + 0.4 * done))
    if not structure.groups:
        why = "; ".join(f"{layer} {why}" for layer, why in list(structure.frozen.items())[:3])
        raise UserError(f"{type(model).__name__} has no group of channels that can be pruned: {why or 'no layers'}")
    return with_earlier(structure, model), trial


def _groups_of(model: nn.Module, call: Call, exclude: Sequence[str]) -> Structure:
    """Return the groups; where the forward cannot be followed, say which part of it can."""
    try:
        return find_groups(model, call, exclude=exclude)
    except NotTracedError as error:
        part = traceable_part(plain_copy(model), call, _has_groups)
        if part is None:
            raise
        taken = f"model.{part}" if all(map(str.isidentifier, part.split("."))) else f"model.get_submodule({part!r})"
        raise UserError(f"{error}: its {part}, by plan_pruning({taken}, …) or Prune(…, module={part!r})") from error


def _has_groups(part: nn.Module, call: Call) -> bool:
    try:
        return bool(find_groups(part, call).groups)
    except Exception:  # what cannot be traced, or is called with what cannot be made again
        return False


def make_plan(
    structure: Structure,
    model: nn.Module,
    settings: Settings,
    *,
    allocation: Allocation | None = None,
    ramp: float = 1.0,
    after: Plan | None = None,
    accumulated_gradients: Mapping[str, Tensor] | None = None,
    costs: Costs | None = None,
    trial: Trial | None = None,
    exact: bool = False,
) -> Plan:
    """Score the live channels and plan which go.

    Args:
        structure: of this model.
        model: its weights are scored.
        settings: as given.
        allocation: what :func:`allocate_widths` returned.
        ramp: share of the amount to remove now.
        after: an earlier plan; what it removed stays removed and is not ranked again.
        accumulated_gradients: see :func:`~lighten.pruning.importance.score_group`.
        costs: of ``structure``, where they are known already.
        trial: of this model as it is, where there is one already.
        exact: the plan will be cut, whatever the ramp: attributes follow, and widths keep their proportions.

    Raises:
        UserError: if weights are not finite, or the amount cannot be reached.
    """
    costs = costs or costs_of(structure)
    states = group_states(structure, after)
    with long_work("plan") as report:
        report("scores channels", 0.7)
        scores = score_groups(states, model, settings, accumulated_gradients)
    candidates = [candidate_of(state, found, settings) for state, found in zip(states, scores, strict=True)]
    frozen = dict(structure.frozen)
    for group, found in zip(structure.groups, scores, strict=True):
        frozen |= dict.fromkeys(group.layers, found.why) if found.blind else {}
    if ramp == 1.0 and accumulated_gradients != {} and all(found.blind for found in scores):
        raise UserError(
            f"score='taylor' needs gradients, and none that is finite and not zero has reached "
            f"{', '.join(group.name for group in structure.groups[:3])}; run a backward pass first, unfreeze a layer, "
            "or use another score"
        )
    again = settings.scope == "uniform" and settings.target in COSTS and any(found.blind for found in scores)
    removed = allocate(
        candidates, settings.amount, scope=settings.scope, align=settings.align, ramp=ramp,
        share=share_of_target(costs, structure, candidates, settings),
        counts=allocation.counts if allocation and not again else None, exact=exact,
    )  # fmt: skip
    if ramp == 1.0:
        with long_work("plan") as report:
            report("tries the plan", 0.8)
            removed, unprunable = verify_plan(model, structure, candidates, removed, align=settings.align, trial=trial)
        frozen |= unprunable
    cuts = structure.cuts(removed)
    counts = [len(gone) for gone in removed]
    saved = {target: costs.removed(counts, target) for target in COSTS}
    if allocation is not None and allocation.latency is not None and ramp == 1.0:
        saved["latency"] = allocation.latency
    curves = allocation.curves if allocation and allocation.curves else ((),) * len(removed)
    rows = zip(states, candidates, scores, removed, curves, strict=True)
    return Plan(
        groups=tuple(_row(*row, costs.through(which)) for which, row in enumerate(rows)),
        cuts=cuts,
        frozen=frozen,
        widths=structure.widths(cuts),
        settings={**asdict(settings), "strength": ramp},
        example=structure.example,
        saved=saved,
        attributes=structure.changes(removed) if exact or ramp == 1.0 else {},
    )


def _row(
    state: GroupState,
    candidate: Candidate,
    scores: GroupScores,
    removed: Sequence[int],
    curve: DamageCurve,
    macs: float,
) -> GroupPlan:
    group = state.group
    norms = torch.tensor(state.row.norms) if state.row is not None else torch.zeros(group.width)
    norms[state.live] = scores.norms
    gone = set(removed)
    return GroupPlan(
        group.name, group.layers, kept=tuple(i for i in range(group.width) if i not in gone),
        scores=tuple(candidate.scores.tolist()), norms=tuple(norms.tolist()), score=scores.score, why=scores.why,
        macs=macs, curve=tuple((share, damage) for share, damage in curve),
    )  # fmt: skip
