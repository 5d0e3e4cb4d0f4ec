"""A look at a network before anything is trained: what it is, what can be cut, what that costs, how fast it trains."""

import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from lighten.delivery.export.targets import export
from lighten.delivery.measure.latency import batch_of, interleaved_latency
from lighten.delivery.runtimes.runners import open_runner
from lighten.errors import UserError
from lighten.pruning.allocate import Candidate, final_counts
from lighten.pruning.candidates import candidate_of, group_states, score_groups
from lighten.pruning.cost import Costs, costs_of
from lighten.pruning.cut import shrink
from lighten.pruning.damage import DamageCurve, GroupSensitivity
from lighten.pruning.groups import Structure
from lighten.pruning.importance import GroupScores
from lighten.pruning.mask import mask_
from lighten.pruning.planner import trace_structure
from lighten.pruning.score import conditions
from lighten.pruning.sensitivity import measure_sensitivity
from lighten.pruning.settings import Settings
from lighten.quantization.post_training import quantize_post_training
from lighten.quantization.sensitivity import find_float_layers
from lighten.search.choose import CONVOLUTIONAL, DENSE, TRANSFORMER, align_of
from lighten.search.needs import Needs
from lighten.search.splits import Splits
from lighten.search.subject import Subject, size_of
from lighten.utils.clone import clone
from lighten.utils.inputs import Call, as_call, logits_of, run
from lighten.utils.targets import TARGETS

AMOUNTS = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
"""Strengths that are foreseen; at one of them latency is measured."""
TIMED = 0.6
SAMPLES = 256
"""Of the guide part, that sensitivities are measured on."""
STEPS = 3
"""Training steps that are timed."""
THROUGH_INT8 = 1.4
"""How much longer a step takes, on the whole, by masks, fake-quantizers and logging."""


def look_at(
    subject: Subject, data: L.LightningDataModule, splits: Splits, needs: Needs, *, files: Mapping[int, Path]
) -> dict[str, Any]:
    """Return a look at a network, in JSON types: the content of ``look.json``.

    Args:
        subject: what is compressed.
        data: is trained on.
        splits: of it.
        needs: say in which runtime latency is measured.
        files: of the whole network that are there already, by bits.

    Returns:
        ``kind``; ``groups`` with what a norm says and the damage of each share; ``frozen``, what cannot be cut and why;
        ``layers`` by what int8 costs; ``exclude``, those that stay in float; ``foreseen``, what each strength takes
        of each group and leaves of MACs and parameters; ``latency``, measured; ``steps_per_epoch`` and
        ``seconds_per_epoch`` of training; ``prunable``; ``align``, of what widths are made multiples.
    """
    calls = subject.some(SAMPLES)
    kind = kind_of(subject.network)
    found: dict[str, Any] = {"kind": kind, "groups": [], "frozen": {}, "foreseen": [], "align": 1}
    try:
        structure = trace_structure(subject.network, as_call(subject.example))
    except UserError as error:
        found |= {"prunable": False, "why_not": str(error)}
    else:
        align = align_of(kind, [group.width for group in structure.groups])
        found |= {"prunable": True, "why_not": None, "align": align, **_cuts(subject.network, structure, calls, align)}
    found |= _layers(subject, splits, needs)
    found["latency"] = _latency(subject, needs, files, found)
    found |= _pace(subject, data)
    return found


def kind_of(network: nn.Module) -> str:
    """Return what a network is, by the layers that it is made of.

    Example:
        >>> kind_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2)))
        'convolutional'
    """
    if any("Attention" in type(module).__name__ for module in network.modules()):
        return TRANSFORMER
    convolves = any(isinstance(module, nn.modules.conv._ConvNd) for module in network.modules())
    return CONVOLUTIONAL if convolves else DENSE


def _cuts(network: nn.Module, structure: Structure, calls: Sequence[Call], align: int) -> dict[str, Any]:
    """Return groups, and what each strength of pruning leaves and damages."""
    settings = Settings(0.5, score="auto", scope="sensitivity", target="macs")
    states, costs = group_states(structure), costs_of(structure)
    scores = score_groups(states, network, settings, None)
    candidates = [candidate_of(state, found, settings) for state, found in zip(states, scores, strict=True)]
    curves = measure_sensitivity(network, structure, candidates, calls)
    groups = [_group(structure, which, scores[which], curve, costs) for which, curve in enumerate(curves)]
    foreseen = [row for target in ("macs", "parameters") for row in _foreseen(candidates, curves, costs, target, align)]
    return {"groups": groups, "frozen": dict(structure.frozen), "foreseen": foreseen}


def _group(structure: Structure, which: int, scores: GroupScores, curve: DamageCurve, costs: Costs) -> dict[str, Any]:
    group, norms = structure.groups[which], conditions(scores.norms)
    return {
        "name": group.name, "width": group.width, "macs": round(costs.through(which), 4), "why_not": None,
        "norms_rank_well": norms.rank_well, "norms": str(norms), "score": scores.score,
        "curve": [[round(share, 4), float(f"{damage:.4g}")] for share, damage in curve],
    }  # fmt: skip


def _foreseen(
    candidates: Sequence[Candidate], curves: Sequence[DamageCurve], costs: Costs, target: str, align: int
) -> list[dict[str, Any]]:
    known = []
    for which, curve in enumerate(curves):
        counts = [c.width if i == which else 0 for i, c in enumerate(candidates)]
        known.append(GroupSensitivity(curve, costs.removed(counts, target)))
    rows = []
    for amount in AMOUNTS:
        try:
            counts = final_counts(
                candidates, amount, "sensitivity", align=align, sensitivities=known,
                share=lambda gone: costs.removed(gone, target),
            )  # fmt: skip
        except UserError:  # more than can go
            break
        shares = {c.name: round(count / c.width, 4) for c, count in zip(candidates, counts, strict=True)}
        rows.append(
            {
                "target": target, "amount": amount, "shares": shares,
                "macs": round(1 - costs.removed(counts, "macs"), 4),
                "parameters": round(1 - costs.removed(counts, "parameters"), 4),
            }
        )  # fmt: skip
    return rows


def _layers(subject: Subject, splits: Splits, needs: Needs) -> dict[str, Any]:
    """Return the layers by what int8 costs them, and which stay in float where training is not to heal them."""
    if subject.task is None:
        return {"layers": [], "exclude": []}
    batches = _labelled(splits.guide, SAMPLES)
    for tolerated in (needs.max_drop or 0.01, 0.999):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = find_float_layers(subject.network, batches, max_drop=tolerated, task=subject.task)
        except UserError:
            continue
        rows = [
            {"name": x.name, "kind": x.kind, "error": float(f"{x.error:.4g}"), "drop": round(x.drop, 5)}
            for x in found.layers
        ]
        return {"layers": rows, "exclude": found.exclude}
    return {"layers": [], "exclude": []}


def _latency(
    subject: Subject, needs: Needs, files: Mapping[int, Path], found: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return milliseconds by strength and bits, in the runtime that is asked for; without what cannot be exported."""
    suffix = TARGETS[needs.runtime].suffix
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = {(0.0, bits): path for bits, path in files.items()}
        with suppress(Exception):  # the trial that comes to it says why
            if found["prunable"]:
                narrow = _narrow(subject, found["align"])
                for bits, network in ((32, narrow), (8, _int8(subject, narrow))):
                    path = Path(folder) / f"{bits}{suffix}"
                    export(network, subject.example, path, target=needs.runtime)
                    known[TIMED, bits] = path
        runners = {
            f"{amount} {bits}": stack.enter_context(open_runner(path, threads=needs.threads))
            for (amount, bits), path in known.items()
        }
        taken = interleaved_latency(runners, {"asked": batch_of(subject.calls[0], needs.batch)}, seconds=1.0)
    medians = {name: found["asked"]["median"] for name, found in taken.items()}
    rows = []
    for name, ms in medians.items():
        amount, _, width = name.partition(" ")
        if needs.runtime == "onnx":  # an int8 file that is slower computes in float32
            ms = min(ms, medians.get(f"{amount} 32", ms))
        rows.append({"amount": float(amount), "bits": int(width), "ms": round(ms, 5)})
    return rows


def _narrow(subject: Subject, align: int) -> nn.Module:
    """Return a copy with the same share of each group cut, ``TIMED`` of the MACs."""
    from lighten.pruning.planner import plan_pruning

    plan = plan_pruning(subject.network, subject.example, TIMED, target="macs", align=align)
    small = clone(subject.network)
    mask_(small, plan)
    return shrink(small, plan)


def _int8(subject: Subject, network: nn.Module) -> nn.Module:
    return quantize_post_training(network, subject.inputs[:1], ranges="min_max", batch=subject.roles)


def _pace(subject: Subject, data: Any) -> dict[str, Any]:
    """Return the steps of an epoch, and what one of a fine-tune is going to take, from a few on training data."""
    loader = data.train_dataloader()
    try:
        batches = len(loader)
    except TypeError:
        batches = 1000
    student, teacher = clone(subject.network).train(), clone(subject.network)
    taken = []
    for batch, _ in zip(loader, range(STEPS), strict=False):
        begun = time.perf_counter()
        call = _call_of(subject, batch)
        with torch.no_grad():
            run(teacher, call)
        logits_of(run(student, call)).float().square().mean().backward()
        taken.append(time.perf_counter() - begun)
    seconds = min(taken, default=1.0) * THROUGH_INT8 * batches
    return {"steps_per_epoch": batches, "seconds_per_epoch": round(seconds, 4)}


def _call_of(subject: Subject, batch: Any) -> Call:
    """Return the network's arguments in a training batch; of an owner's, as many samples as a known call has."""
    from lighten.utils.batch import BatchFormat

    if subject.owner is None:
        return BatchFormat().split(batch).call
    return batch_of(subject.calls[0], size_of(batch))


def _labelled(loader: Any, samples: int) -> list[Mapping[str, Any] | tuple[Any, ...]]:
    from lighten.delivery.folders.student import first_samples

    return list(first_samples(loader, samples))
