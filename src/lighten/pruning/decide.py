"""From a model to a plan: what can be pruned, what it scores, what goes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from lighten.errors import UserError
from lighten.pruning.allocate import Candidate, Curve, Sensitivity, Share, allocate, final_counts
from lighten.pruning.cost import Costs, costs_of
from lighten.pruning.criterion import Verdict, judge
from lighten.pruning.earlier import with_earlier
from lighten.pruning.groups import Structure, find_groups
from lighten.pruning.latency import reach_latency
from lighten.pruning.mask import tensors_of
from lighten.pruning.plan import GroupPlan, Plan
from lighten.pruning.prove import confirm, prove
from lighten.pruning.sensitivity import probe
from lighten.pruning.settings import PruneSettings, Settings
from lighten.utils.inputs import Call, ExampleInput, as_call
from lighten.utils.preserve import preserved

COSTS = ("macs", "parameters")
"""Targets that follow from the widths alone."""


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

    Inputs and outputs of the network keep their width. Channels that residual adds, concatenations, depthwise and
    grouped convolutions, attention heads or flattening tie together go together. What cannot be followed is left
    alone, by name.

    Args:
        model: not wrapped for distributed training; modes and weights are left as found.
        example_input: a tensor, a tuple of positionals or a dict of keywords to run it with.
        amount: share of ``target`` to remove, in (0, 1).
        score: which channels of a group go first, by their filters in all its layers, side by side: ``"fpgm"``,
            ``"magnitude"`` (L2), ``"l1"``, ``"mix"``, ``"bn_scale"``, ``"taylor"`` (from the weights' gradients),
            ``"random"``; see :mod:`lighten.pruning.score`. ``"auto"`` takes magnitude where the norms of the group
            fulfil :class:`~lighten.pruning.score.Norms`, and FPGM where not.
        scope: ``"uniform"``, the same share of every group; ``"global"``, wherever scores are lowest; or
            ``"sensitivity"``, wherever it harms the outputs least for what it saves, as probed on ``calibration``.
        target: what ``amount`` is a share of: ``"channels"`` that can go, ``"macs"``, ``"parameters"``, or
            ``"latency"``, batch of the example, measured in ONNX Runtime on one thread.
        exclude: names or patterns of layers to leave alone, with all that is tied to them.
        align: make widths multiples of this where they can be.
        rate_norm: for ``"mix"``, the share that a norm lets pass.
        calibration: for ``"sensitivity"``, a few inputs that stand for the data, each as ``example_input``.
        of: where ``model`` was pruned before, what ``amount`` is a share of: the ``"present"`` model, without the
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
    structure = study(model, as_call(example_input), exclude=exclude)
    calls = None if calibration is None else [as_call(given) for given in calibration]
    findings = settle(structure, model, settings, calibration=calls)
    return decide(structure, model, settings, findings=findings)


def study(model: nn.Module, call: Call, *, exclude: Sequence[str] = ()) -> Structure:
    """Return what can be pruned of ``model``, each group tried on a copy.

    Raises:
        UserError: as :func:`plan_pruning`; where nothing can be pruned, with the reasons.
    """
    with preserved(model):
        structure = prove(model, find_groups(model, call, exclude=exclude))
    if not structure.groups:
        why = "; ".join(f"{layer} {why}" for layer, why in list(structure.frozen.items())[:3])
        raise UserError(f"{type(model).__name__} has no group of channels that can be pruned: {why or 'no layers'}")
    return with_earlier(structure, model)


@dataclass(frozen=True)
class Findings:
    """What was found out once and holds for every decision after.

    Attributes:
        counts: channels of each group to remove at full strength.
        curves: points (share of a group's channels, damage), by group.
        latency: share of the whole model's time that the cut one saves.
    """

    counts: tuple[int, ...]
    curves: tuple[Curve, ...] = ()
    latency: float | None = None


def settle(
    structure: Structure,
    model: nn.Module,
    settings: Settings,
    *,
    calibration: Sequence[Call] | None = None,
    evidence: Mapping[str, Tensor] | None = None,
) -> Findings | None:
    """Fix how many channels of each group go at full strength; ``None`` where the scores decide that each time.

    Args:
        structure: of this model.
        model: its weights are scored.
        settings: as given.
        calibration: calls for the scope ``sensitivity``.
        evidence: see :func:`~lighten.pruning.criterion.judge`.

    Raises:
        UserError: if the amount cannot be reached, or an input for calibration is missing.
    """
    if settings.scope == "global":
        return None
    costs = costs_of(structure)
    if settings.scope == "sensitivity" or settings.target == "latency":
        verdicts = _verdicts(structure, model, settings, None, evidence)
    else:  # the widths do not depend on the scores
        live = [torch.zeros(len(_live(structure, which, None))) for which in range(len(structure.groups))]
        verdicts = [Verdict(zeros, zeros, settings.score) for zeros in live]
    candidates = [_candidate(structure, which, verdict, None, settings) for which, verdict in enumerate(verdicts)]
    _check_amount(structure, candidates, settings, costs)
    curves: list[Curve] = []
    known: list[Sensitivity] = []
    if settings.scope == "sensitivity":
        if calibration is None:
            raise UserError("scope='sensitivity' needs calibration, a few inputs that stand for the data; give them")
        curves = probe(model, structure, candidates, calibration)
        known = [
            Sensitivity(curve, _saving(costs, candidates, which, settings.target)) for which, curve in enumerate(curves)
        ]
    if settings.target == "latency":
        counts, saved = reach_latency(model, structure, candidates, _of_present(settings, structure), known)
        return Findings(tuple(counts), tuple(curves), saved)
    share = _share(costs, structure, candidates, settings)
    counts = final_counts(
        candidates, settings.amount, settings.scope, align=settings.align, share=share, sensitivities=known
    )
    return Findings(tuple(counts), tuple(curves))


def decide(
    structure: Structure,
    model: nn.Module,
    settings: Settings,
    *,
    findings: Findings | None = None,
    strength: float = 1.0,
    after: Plan | None = None,
    evidence: Mapping[str, Tensor] | None = None,
    costs: Costs | None = None,
) -> Plan:
    """Score the live channels and plan which go.

    Args:
        structure: of this model.
        model: its weights are scored.
        settings: as given.
        findings: what :func:`settle` returned.
        strength: share of the amount to remove now.
        after: an earlier plan; what it removed stays removed and is not ranked again.
        evidence: see :func:`~lighten.pruning.criterion.judge`.
        costs: of ``structure``, where they are known already.

    Raises:
        UserError: if weights are not finite, or the amount cannot be reached.
    """
    costs = costs or costs_of(structure)
    rows: Sequence[GroupPlan | None] = after.groups if after is not None else (None,) * len(structure.groups)
    judged = _verdicts(structure, model, settings, after, evidence)
    verdicts = [_recalled(structure, which, v, row) for which, (v, row) in enumerate(zip(judged, rows, strict=True))]
    candidates = [
        _candidate(structure, which, verdict, row, settings)
        for which, (verdict, row) in enumerate(zip(verdicts, rows, strict=True))
    ]
    frozen = dict(structure.frozen)
    for group, verdict in zip(structure.groups, verdicts, strict=True):
        frozen |= dict.fromkeys(group.layers, verdict.why) if verdict.blind else {}
    if strength == 1.0 and evidence != {} and all(verdict.blind for verdict in verdicts):
        raise UserError(
            f"score='taylor' needs gradients, and none that is finite and not zero has reached "
            f"{', '.join(group.name for group in structure.groups[:3])}; run a backward pass first, unfreeze a layer, "
            "or use another score"
        )
    again = settings.scope == "uniform" and settings.target in COSTS and any(v.blind for v in verdicts)
    removed = allocate(
        candidates, settings.amount, scope=settings.scope, align=settings.align, strength=strength,
        share=_share(costs, structure, candidates, settings),
        counts=findings.counts if findings and not again else None,
    )  # fmt: skip
    if strength == 1.0:
        removed, stubborn = confirm(model, structure, candidates, removed, align=settings.align)
        frozen |= stubborn
    cuts = structure.cuts(removed)
    counts = [len(r) for r in removed]
    saved = {target: costs.removed(counts, target) for target in ("macs", "parameters")}
    if findings is not None and findings.latency is not None and strength == 1.0:
        saved["latency"] = findings.latency
    curves = findings.curves if findings and findings.curves else ((),) * len(removed)
    return Plan(
        groups=tuple(
            _row(structure, which, candidate, verdict, row, gone, costs.through(which), curves[which])
            for which, (candidate, verdict, row, gone) in enumerate(
                zip(candidates, verdicts, rows, removed, strict=True)
            )
        ),
        cuts=cuts,
        frozen=frozen,
        widths=structure.widths(cuts),
        settings={**asdict(settings), "strength": strength},
        example=structure.example,
        saved=saved,
    )


def _share(costs: Costs, structure: Structure, candidates: Sequence[Candidate], settings: Settings) -> Share | None:
    """Return what the amount is a share of, as a function of the channels that are gone."""
    target = settings.target
    if target not in COSTS:
        return None
    if settings.of == "original":
        left = 1.0 - structure.saved.get(target, 0.0)
        return lambda counts: 1.0 - left * (1.0 - costs.removed(counts, target))
    before = costs.removed([c.start for c in candidates], target)
    return lambda counts: (costs.removed(counts, target) - before) / (1.0 - before)


def _check_amount(structure: Structure, candidates: Sequence[Candidate], settings: Settings, costs: Costs) -> None:
    """Raise where so much of the original model is gone that nothing is left to do."""
    if settings.of == "present":
        return
    share = _share(costs, structure, candidates, settings)
    if share is not None:
        done = share([c.start for c in candidates])
    elif settings.target == "latency":
        done = structure.saved.get("latency", 0.0)
    else:
        done = sum(c.start - c.removed(0) for c in candidates) / sum(c.base for c in candidates)
    if done >= settings.amount:
        raise UserError(
            f"amount={settings.amount} of the original {settings.target}: {done:.1%} are gone already; "
            "ask for more, or for a share of what is left with of='present'"
        )


def _of_present(settings: Settings, structure: Structure) -> Settings:
    """Return the same amount as a share of the present latency."""
    if settings.of == "present":
        return settings
    if structure.saved and "latency" not in structure.saved:
        raise UserError(
            "of='original' with target='latency' needs a model whose latency was measured when it was cut; "
            "use of='present'"
        )
    return replace(settings, amount=1.0 - (1.0 - settings.amount) / (1.0 - structure.saved.get("latency", 0.0)))


def _saving(costs: Costs, candidates: Sequence[Candidate], which: int, target: str) -> float:
    """Return the share of what counts that goes with all channels of one group."""
    if target == "channels":
        return candidates[which].width / sum(c.width for c in candidates)
    counts = [c.width if i == which else 0 for i, c in enumerate(candidates)]
    return costs.removed(counts, "parameters" if target == "parameters" else "macs")


def _verdicts(
    structure: Structure,
    model: nn.Module,
    settings: Settings,
    after: Plan | None,
    evidence: Mapping[str, Tensor] | None,
) -> list[Verdict]:
    tensors = tensors_of(model)
    rows: Sequence[GroupPlan | None] = after.groups if after is not None else (None,) * len(structure.groups)
    return [
        judge(
            group,
            tensors,
            _live(structure, which, row),
            score=settings.score,
            rate_norm=settings.rate_norm,
            evidence=evidence,
        )
        for which, (group, row) in enumerate(zip(structure.groups, rows, strict=True))
    ]


def _recalled(structure: Structure, which: int, verdict: Verdict, row: GroupPlan | None) -> Verdict:
    """Return the verdict, or the one before where nothing has become known since."""
    if not verdict.blind or row is None:
        return verdict
    scores = torch.tensor(row.scores)[_live(structure, which, row)]
    return replace(verdict, scores=scores, why="", blind=False) if scores.any() else verdict


def _gone(structure: Structure, which: int, row: GroupPlan | None) -> frozenset[int]:
    return frozenset(row.removed if row is not None else ()) | frozenset(structure.gone[which])


def _live(structure: Structure, which: int, row: GroupPlan | None) -> Tensor:
    gone = _gone(structure, which, row)
    return torch.tensor([i for i in range(structure.groups[which].width) if i not in gone])


def _candidate(
    structure: Structure, which: int, verdict: Verdict, row: GroupPlan | None, settings: Settings
) -> Candidate:
    """Score the live channels of a group; the others keep the score with which they went."""
    group = structure.groups[which]
    scores = torch.tensor(row.scores) if row is not None else torch.zeros(group.width)
    scores[_live(structure, which, row)] = verdict.scores
    first, index = next((slot, index) for slot, index in group.positions.items() if slot.role == "filter")
    beside = structure.sizes[first.tensor, first.dim] - index.numel()
    return Candidate(
        group.name, scores, _gone(structure, which, row), unit=index.shape[1], beside=beside,
        start=len(structure.gone[which]), absent=structure.absent[which] if settings.of == "original" else None,
        fixed=verdict.blind,
    )  # fmt: skip


def _row(
    structure: Structure,
    which: int,
    candidate: Candidate,
    verdict: Verdict,
    before: GroupPlan | None,
    removed: Sequence[int],
    macs: float,
    curve: Curve,
) -> GroupPlan:
    group = structure.groups[which]
    norms = torch.tensor(before.norms) if before is not None else torch.zeros(group.width)
    norms[_live(structure, which, before)] = verdict.norms
    gone = set(removed)
    return GroupPlan(
        group.name, group.layers, kept=tuple(i for i in range(group.width) if i not in gone),
        scores=tuple(candidate.scores.tolist()), norms=tuple(norms.tolist()), score=verdict.score, why=verdict.why,
        macs=macs, curve=tuple((share, damage) for share, damage in curve),
    )  # fmt: skip
