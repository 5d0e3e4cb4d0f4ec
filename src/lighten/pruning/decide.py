"""From a model to a plan: what can be pruned, what it scores, what goes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lighten.errors import UserError, did_you_mean
from lighten.example import Call, ExampleInput, as_call
from lighten.pruning.allocate import SCOPES, Candidate, allocate
from lighten.pruning.groups import Group, Structure, find_groups
from lighten.pruning.mask import tensors_of
from lighten.pruning.plan import GroupPlan, Plan
from lighten.pruning.prove import prove
from lighten.pruning.score import SCORES


def plan_pruning(
    model: nn.Module,
    example_input: ExampleInput,
    amount: float,
    *,
    score: str = "fpgm",
    scope: str = "uniform",
    exclude: Sequence[str] = (),
    align: int = 1,
) -> Plan:
    """Decide which channels of ``model`` to remove. Nothing is cut.

    Inputs and outputs of the network keep their width. Channels that residual adds, concatenations, depthwise and
    grouped convolutions or flattening tie together go together. What cannot be followed is left alone, by name.

    Args:
        model: not wrapped for distributed training; modes and weights are left as found.
        example_input: a tensor, a tuple of positionals or a dict of keywords to run it with.
        amount: share of channels to remove, in (0, 1).
        score: ``"fpgm"`` or ``"magnitude"``, of each channel's filters in all layers of its group, side by side.
        scope: ``"uniform"``, the share of every group, or ``"global"``.
        exclude: names or patterns of layers to leave alone, with all that is tied to them.
        align: make widths multiples of this where they can be.

    Raises:
        UserError: if a setting is out of range, a pattern matches no layer, the model is wrapped or cannot be traced,
            its weights are not finite, ``amount`` would empty a layer, or there is nothing to prune.

    Example:
        >>> from torch import nn, randn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> plan_pruning(net, randn(1, 3, 8, 8), amount=0.25).widths
        {'0': (8, 6), '2': (4, 4)}
    """
    check_settings(amount, score=score, scope=scope, align=align)
    return decide(
        study(model, as_call(example_input), exclude=exclude), model, amount, score=score, scope=scope, align=align
    )


def check_settings(amount: float, *, score: str, scope: str, align: int) -> None:
    """Check settings before a model is looked at.

    Raises:
        UserError: naming the setting.
    """
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0.0 < amount < 1.0:
        raise UserError(f"amount={amount!r}, expected a share of channels above 0 and below 1")
    if score not in SCORES:
        raise UserError(f"no score {score!r}; {did_you_mean(str(score), SCORES)}")
    if scope not in SCOPES:
        raise UserError(f"no scope {scope!r}; {did_you_mean(str(scope), SCOPES)}")
    if isinstance(align, bool) or not isinstance(align, int) or align < 1:
        raise UserError(f"align={align!r}, expected a whole number of at least 1")


def study(model: nn.Module, call: Call, *, exclude: Sequence[str] = ()) -> Structure:
    """Return what can be pruned of ``model``, each group tried on a copy.

    Raises:
        UserError: as :func:`plan_pruning`; where nothing can be pruned, with the reasons.
    """
    structure = prove(model, find_groups(model, call, exclude=exclude))
    if not structure.groups:
        why = "; ".join(f"{layer} {why}" for layer, why in list(structure.frozen.items())[:3])
        raise UserError(f"{type(model).__name__} has no group of channels that can be pruned: {why or 'no layers'}")
    return structure


def decide(
    structure: Structure,
    model: nn.Module,
    amount: float,
    *,
    score: str,
    scope: str,
    align: int,
    strength: float = 1.0,
    after: Plan | None = None,
) -> Plan:
    """Score the live channels and plan which go.

    Args:
        structure: of this model.
        model: its weights are scored.
        amount: share to remove at full strength.
        score: as for :func:`plan_pruning`, like ``scope`` and ``align``.
        scope: see there.
        align: see there.
        strength: share of ``amount`` to remove now.
        after: an earlier plan; what it removed stays removed and is not ranked again.

    Raises:
        UserError: if weights are not finite, or ``amount`` would empty a layer.
    """
    tensors = tensors_of(model)
    rows = after.groups if after is not None else (None,) * len(structure.groups)
    candidates = [
        _candidate(structure, group, row, tensors, score) for group, row in zip(structure.groups, rows, strict=True)
    ]
    removed = allocate(candidates, amount, scope=scope, align=align, strength=strength)
    cuts = structure.cuts(removed)
    return Plan(
        groups=tuple(_row(g, c, r) for g, c, r in zip(structure.groups, candidates, removed, strict=True)),
        cuts=cuts,
        frozen=dict(structure.frozen),
        widths=structure.widths(cuts),
        settings={"amount": amount, "score": score, "scope": scope, "align": align, "strength": strength},
        example=structure.example,
    )


def _candidate(
    structure: Structure, group: Group, row: GroupPlan | None, tensors: dict[str, Tensor], score: str
) -> Candidate:
    """Score the live channels of a group; the others keep the score with which they went."""
    filters = group.filters(tensors)
    if not torch.isfinite(filters).all():
        raise UserError(f"the weights of {', '.join(group.layers)} are not finite; lower the learning rate")
    gone = frozenset(row.removed) if row is not None else frozenset()
    live = torch.tensor([i for i in range(group.width) if i not in gone])
    scores = torch.tensor(row.scores) if row is not None else torch.zeros(group.width)
    scores[live] = SCORES[score](filters[live.to(filters.device)]).cpu()
    first, index = next((slot, index) for slot, index in group.positions.items() if slot.role == "filter")
    beside = structure.sizes[first.tensor, first.dim] - index.numel()
    return Candidate(group.name, scores, gone, unit=index.shape[1], beside=beside)


def _row(group: Group, candidate: Candidate, removed: list[int]) -> GroupPlan:
    gone = set(removed)
    kept = tuple(i for i in range(group.width) if i not in gone)
    return GroupPlan(group.name, group.layers, kept, tuple(candidate.scores.tolist()))
