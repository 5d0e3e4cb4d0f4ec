"""The report of a run: one HTML file that needs nothing else, neither network nor scripts."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lighten.delivery import plots, prune_plots, quant_plots, quantized
from lighten.delivery.artifacts import (
    HistoryRows,
    as_plan,
    open_run,
    read_history,
    read_json,
    recipe_name,
    write_text,
)
from lighten.delivery.figures import (
    MEANING,
    NAMES,
    Figure,
    figure,
    headline,
    percent,
    roles,
    rows,
    sentence,
)
from lighten.delivery.scores import Scores, read_scores, reference_of
from lighten.delivery.templates import environment

if TYPE_CHECKING:
    from lighten.pruning.plan import Plan

MOST_LAYERS = 30
"""A table of more layers than this is folded away until it is asked for."""


@dataclass(frozen=True)
class Card:
    """A key figure: what it is, its value, and a line that puts it in its place."""

    label: str
    value: Figure
    note: tuple[Figure | str, ...]


@dataclass(frozen=True)
class Plot:
    """A plot with its heading and a caption that says how to read it; ``tall`` ones scroll on screen."""

    heading: str
    svg: str
    caption: str
    tall: bool = False


@dataclass(frozen=True)
class Panels:
    """A figure of several drawings, as wide as the page; ``broad`` ones stand at most three in a row.

    ``legend`` holds colours and what they mean.
    """

    heading: str
    panels: list[prune_plots.Panel]
    caption: str
    broad: bool = False
    legend: tuple[tuple[str, str], ...] = ()


def write_report(run: str | Path) -> Path:
    """Write ``report.html`` of a run folder from whatever of it is there, and return its path.

    Scores, plan, history and recipe are each optional: where one is missing, the page says so.

    Raises:
        UserError: if ``run`` is no run folder, or its ``scores.json`` or ``plan.json`` is broken.
    """
    run = open_run(run)
    return write_text(run / "report.html", render(run))


def render(run: Path) -> str:
    """Return the report's HTML."""
    from markupsafe import Markup

    jinja = environment(autoescape=True)
    jinja.filters["svg"] = Markup
    jinja.tests["figure"] = lambda value: isinstance(value, Figure)
    return jinja.get_template("report.html").render(_context(run))


def _context(run: Path) -> dict[str, Any]:
    scores = read_scores(run) if (run / "scores.json").exists() else None
    plan = as_plan(read_json(run / "plan.json", made_by="the fit")) if (run / "plan.json").exists() else None
    history = read_history(run / "history.jsonl")
    recipe = scores["recipe"] if scores else recipe_name(run)  # a folder may have moved since
    run_id = scores["provenance"].get("run", run.resolve().name) if scores else run.resolve().name
    context = {
        "recipe": recipe,
        "run_id": run_id,
        "folder": f"runs/{recipe}/{run_id}/student",
        "recipe_text": _read(run / "recipe.yaml"),
        "notes": [*history.notes, *_missing(scores, plan)],
        "plots": _plots(scores, history),
        "pruned": _pruned(plan) if plan else None,
        "warnings": quantized.warnings_of(scores),
        "runtimes": quantized.runtimes(scores),
        "quantized": _quantized(run, scores),
        "scores": None,
    }
    return context | (_measured(scores) if scores else {})


def _measured(scores: Scores) -> dict[str, Any]:
    reference, _ = reference_of(scores)
    provenance = scores.get("provenance", {})
    return {
        "scores": scores,
        "title": sentence(scores),
        "headline": headline(scores),
        "cards": _cards(scores),
        "columns": [(role, NAMES[role], MEANING[role]) for role in roles(scores)],
        "reference": NAMES[reference].lower(),
        "rows": rows(scores),
        "sources": [
            (role, NAMES[role], scores["models"][role], provenance.get("files", {}).get(role)) for role in roles(scores)
        ],
        "provenance": provenance,
        "compressed": scores["models"]["compressed"],
        "flips": figure(scores, "comparison.flips"),
        "flips_of": figure(scores, "comparison.flips_of"),
    }


def _cards(scores: Scores) -> list[Card]:
    reference, _ = reference_of(scores)

    def change(key: str) -> tuple[Figure | str, ...]:
        return figure(scores, f"models.{reference}.{key}"), " → ", figure(scores, f"models.compressed.{key}")

    def card(label: str, key: str, note: tuple[Figure | str, ...]) -> Card:
        return Card(label, figure(scores, f"comparison.{key}"), note)

    return [
        card("accuracy kept", "retention", change("accuracy")),
        card("smaller file", "size_ratio", change("bytes")),
        card("faster, batch 1", "speedup_batch_1", change("latency_ms.batch_1.median")),
        card("faster, batch 32", "speedup_batch_32", change("latency_ms.batch_32.median")),
        card("fewer MACs", "mac_ratio", change("macs")),
        card("same answers", "agreement", (f"as the {'teacher' if reference == 'teacher' else 'dense student'}",)),
    ]


def _plots(scores: Scores | None, history: HistoryRows) -> list[Plot]:
    drawn = [
        (
            "Student against teacher",
            plots.accuracy_plot(history),
            "Accuracy on the validation split while the student learns, is pruned and goes int8.",
            False,
        ),
        (
            "Size, latency, accuracy",
            plots.tradeoff_plot(scores) if scores else None,
            "Up and to the left is better. The area of a disc is the size of the file; latency is the median of "
            "single samples.",
            False,
        ),
        (
            "Pruning and quantization",
            plots.compression_plot(history),
            "The line is the share of prunable channels that are gone, the dashes what was asked for. Below, from "
            "when on training went through int8, and from when on its ranges were fixed.",
            False,
        ),
        (
            "Training loss",
            plots.loss_plot(history),
            "Pale: as logged. Strong: the mean of each fortieth of the fit.",
            False,
        ),
        *_class_plot(scores),
    ]
    return [Plot(heading, svg, caption, tall) for heading, svg, caption, tall in drawn if svg]


def _class_plot(scores: Scores | None) -> list[tuple[str, str | None, str, bool]]:
    if not scores or not scores.get("classes"):
        return []
    names, recall = scores["classes"]["names"], scores["classes"]["recall"]
    who, _ = reference_of(scores)
    worst = min(
        (new - old, name)
        for name, old, new in zip(names, recall[who], recall["compressed"], strict=True)
        if old is not None and new is not None
    )
    caption = f"Filled: compressed. Open: {NAMES[who].lower()}. " + (
        f"{worst[1]} loses most, {percent(-worst[0], 1)} of its samples." if worst[0] < 0 else "No class loses."
    )
    svg = plots.classes_plot(names, recall[who], recall["compressed"], who)
    return [("Class by class", svg, caption, len(names) > 20)]


def _pruned(plan: "Plan") -> dict[str, Any]:
    """Return the section on the plan: what was asked for and what came of it, in words and in plots."""
    groups = prune_plots.heaviest(plan.groups)
    capped = len(groups) < len(plan.groups)
    rule = f" Drawn are the {len(groups)} of {len(plan.groups)} groups that carry the most MACs." if capped else ""
    before, after = (sum(getattr(group, f"width_{when}") for group in plan.groups) for when in ("before", "after"))
    many = f"{len(plan.groups)} group{'s' if len(plan.groups) != 1 else ''}"
    drawn = [
        Panels(
            "Saved against asked",
            prune_plots.savings_panels(plan),
            "What went, as shares of the network before pruning (of the channels: of those that can go). The stroke is "
            "what was asked.",
        ),
        Panels(
            "Kept and removed channels",
            prune_plots.width_panels(groups),
            f"A group is a set of layers that must be cut alike. Of {before} channels in {many}, {after} are "
            f"left. Filled: kept. Outlined: removed.{rule}",
            broad=True,
        ),
        Panels(
            "Norms and the cut",
            prune_plots.norm_panels(groups),
            "How many channels of a group have which L2 norm, from 0 to its largest. Filled, upward: kept. Outlined, "
            "downward: removed, with the norm they had when they went. The dashed line is the cut, where one norm "
            "parts the two; other scores take channels from anywhere. Below, the score that was used, and why where "
            f"it was chosen for the group.{rule}",
        ),
        Panels(
            "Sensitivity",
            prune_plots.curve_panels(groups),
            "Damage to the outputs when a share of this group alone is removed: the mean KL divergence from the whole "
            "network’s, in nats, logarithmic, all groups over the same axes. The dashed line and the ring are the "
            f"share that was chosen.{rule}",
        ),
    ]
    return {"plots": [figure for figure in drawn if figure.panels], "summary": _achieved(plan)}


def _quantized(run: Path, scores: Scores | None) -> dict[str, Any] | None:
    """Return the section on int8: how it was done, what it brings, and layer by layer; ``None`` without any."""
    compression, sensitivity = quantized.read_compression(run), quant_plots.read_sensitivity(run)
    how, count, gate = quantized.method(compression), quantized.count(compression), quantized.gate(scores)
    if not (how or count or gate or sensitivity):
        return None
    layers = quantized.layers_of(compression)
    return {
        "summary": " ".join(sentence for sentence in (how, count and f"{count}.") if sentence),
        "gate": gate,
        "count": count,
        "layers": layers,
        "folded": len(layers) > MOST_LAYERS,
        "figure": _sensitivity(sensitivity) if sensitivity else None,
        "outcome": quant_plots.outcome(sensitivity) if sensitivity else None,
    }


def _sensitivity(sensitivity: dict[str, Any]) -> Panels | None:
    panels = quant_plots.sensitivity_panels(sensitivity)
    legend = tuple(quant_plots.legend(sensitivity))
    return Panels("Sensitivity to int8", panels, quant_plots.caption(sensitivity), True, legend) if panels else None


def _achieved(plan: "Plan") -> str:
    found = prune_plots.asked(plan)
    wanted = f"Asked for: {percent(found[1], 1)} of the {prune_plots.SAVED[found[0]]}. " if found else ""
    gone = [f"{percent(share, 1)} of the {prune_plots.SAVED[key]}" for key, share in prune_plots.savings(plan).items()]
    strength = plan.settings.get("strength", 1.0)
    early = f" The plan was made at {percent(strength, 0)} of the full strength." if strength < 1 else ""
    return f"{wanted}Gone: {', '.join(gone)}.{early}"


def _missing(scores: Scores | None, plan: "Plan | None") -> list[str]:
    notes = []
    if scores and scores["models"]["teacher"] is None:
        notes.append("This run had no teacher: everything is compared with the dense student.")
    if plan is None:
        notes.append("This run has no pruning plan: the shape of its layers is as it was.")
    return notes


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
