"""The report of a run: one HTML file that needs nothing else, neither network nor scripts."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lighten.delivery.folders.run import (
    HistoryRows,
    as_plan,
    open_run,
    read_history,
    read_json,
    recipe_name,
    write_text,
)
from lighten.delivery.folders.student import FIT
from lighten.delivery.measure.confusion import FILE as CONFUSION
from lighten.delivery.measure.confusion import confusion_rows
from lighten.delivery.measure.scores import Scores, describe_task, read_scores, reference_of
from lighten.delivery.report import fit_plots, plots, prune_plots, quant_plots
from lighten.delivery.report import int8 as quantized
from lighten.delivery.report.answers import parts_plot, pictures, points_plots
from lighten.delivery.report.drawings import Drawings
from lighten.delivery.report.figures import (
    MEANING,
    NAMES,
    Figure,
    alike,
    differing,
    figure,
    headline,
    roles,
    rows,
    sentence,
)
from lighten.delivery.report.status import failure_notes, status
from lighten.delivery.report.templates import environment
from lighten.delivery.report.wording import CLASSES, Told, label_of, noun_of
from lighten.errors import UserError
from lighten.tasks import task_of

if TYPE_CHECKING:
    from lighten.pruning.plan import Plan

MAX_LAYERS = 30
"""A table of more layers than this is folded away until it is asked for."""

MAX_MISTAKES = 12
"""The most pairs of classes that are shown of the confusion table."""


ALONG = {
    "Student against teacher": "On the validation split, and what the fit was told to do. Tinted as above: pruning, "
    "int8, ranges fixed. The figures at the lines’ ends are the last ones.",
    "Compression": "The share of channels that each group keeps, and the lowest and highest value that each quantized "
    "place has seen, as they changed along the fit.",
    "System": "Of the machine that trained: this process’s share of all cores, memory, and optimizer steps a second, "
    "pauses left out.",
}


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
    task = scores["task"] if scores else _task_of(run)
    run_id = scores["provenance"].get("run", run.resolve().name) if scores else run.resolve().name
    context = {
        "recipe": recipe,
        "run_id": run_id,
        "folder": f"runs/{recipe}/{run_id}/student",
        "recipe_text": _read(run / "recipe.yaml"),
        "notes": [*failure_notes(run, scores is not None), *history.notes, *_missing(scores, plan)],
        "status": None if scores else status(run, history.rows),
        "plots": _plots(run, scores, history, task),
        "pictures": pictures(run, scores),
        "along": [
            Drawings(section, drawings, ALONG.get(section, ""), broad=True)
            for section, drawings in fit_plots.fit_drawings(history, task)
        ],
        "mistakes": _mistakes(run),
        "pruned": prune_plots.section(plan) if plan else None,
        "warnings": quantized.warnings_of(scores),
        "runtimes": quantized.runtimes(scores),
        "quantized": _quantized(run, scores, task),
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
        "differing": differing(scores),
        "off": f"{scores['comparison'].get('logit_error', 0.0):.2%}",
    }


def _cards(scores: Scores) -> list[Card]:
    reference, _ = reference_of(scores)

    def change(key: str) -> tuple[Figure | str, ...]:
        return figure(scores, f"models.{reference}.{key}"), " → ", figure(scores, f"models.compressed.{key}")

    def card(label: str, key: str, note: tuple[Figure | str, ...]) -> Card:
        return Card(label, figure(scores, f"comparison.{key}"), note)

    task = scores["task"]
    metric, likeness = task["metric"], alike(scores)
    who = "teacher" if reference == "teacher" else "dense student"
    words = (
        "same answers" if likeness and "agreement" in task["alike"] else noun_of(task, next(iter(task["alike"]), ""))
    )
    return [
        card(f"{noun_of(task, metric)} kept", "retention", change(metric)),
        card("smaller file", "size_ratio", change("bytes")),
        card("faster, batch 1", "speedup_batch_1", change("latency_ms.batch_1.median")),
        card("faster, batch 32", "speedup_batch_32", change("latency_ms.batch_32.median")),
        card("fewer MACs", "mac_ratio", change("macs")),
        *(
            [Card(words, likeness, (who if words == "same answers" else who.replace("as", "to", 1),))]
            if likeness
            else []
        ),
    ]


def _plots(run: Path, scores: Scores | None, history: HistoryRows, task: Told) -> list[Plot]:
    noun = noun_of(task, task["metric"])
    drawn = [
        (
            "Student against teacher",
            plots.quality_plot(history, task),
            f"{label_of(task, task['metric'])} on the validation split while the student learns, is pruned and goes "
            "int8.",
            False,
        ),
        (
            f"Size, latency, {noun}",
            plots.tradeoff_plot(scores) if scores else None,
            f"{'Down' if task['lower_is_better'] else 'Up'} and to the left is better. The area of a disc is the "
            "size of the file; latency is the median of single samples.",
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
        *parts_plot(scores),
        *points_plots(run, scores),
    ]
    return [Plot(heading, svg, caption, tall) for heading, svg, caption, tall in drawn if svg]


def _task_of(run: Path) -> Told:
    """Return what a run without scores answers, as its settings say."""
    try:
        config = read_json(run / FIT, made_by="lighten train recipe=…").get("config", {})
        return describe_task(task_of(config.get("task", "classification")))
    except UserError:  # there are none, or not all of them
        return CLASSES


def _quantized(run: Path, scores: Scores | None, task: Told) -> dict[str, Any] | None:
    """Return the section on int8: how it was done, what it brings, and layer by layer; ``None`` without any."""
    compression, sensitivity = quantized.read_compression(run), quant_plots.read_sensitivity(run)
    how, count, int8_vs_float = (
        quantized.method(compression),
        quantized.count(compression),
        quantized.int8_vs_float(scores),
    )
    if not (how or count or int8_vs_float or sensitivity):
        return None
    layers = quantized.layers_of(compression)
    return {
        "summary": " ".join(sentence for sentence in (how, count and f"{count}.") if sentence),
        "int8_vs_float": int8_vs_float,
        "count": count,
        "layers": layers,
        "folded": len(layers) > MAX_LAYERS,
        "figure": _sensitivity(sensitivity, task) if sensitivity else None,
        "outcome": quant_plots.outcome(sensitivity, task) if sensitivity else None,
    }


def _sensitivity(sensitivity: dict[str, Any], task: Told) -> Drawings | None:
    drawings = quant_plots.sensitivity_drawings(sensitivity, task)
    legend = tuple(quant_plots.legend(sensitivity))
    caption = quant_plots.caption(sensitivity)
    return Drawings("Sensitivity to int8", drawings, caption, True, legend) if drawings else None


def _mistakes(run: Path) -> dict[str, Any] | None:
    """Return the most frequent wrong answers of the compressed model beside those of the others."""
    if not (run / CONFUSION).exists():
        return None
    columns, counted = confusion_rows(run)
    wrong = sorted((row for row in counted if row[0] != row[1]), key=lambda row: (-row[-1], row[0], row[1]))
    if not wrong:
        return None
    models = [NAMES.get(name, name) for name in columns[2:]]  # type: ignore[call-overload]
    return {"models": models, "rows": wrong[:MAX_MISTAKES], "of": len(wrong)}


def _missing(scores: Scores | None, plan: "Plan | None") -> list[str]:
    notes = []
    if scores and scores["models"]["teacher"] is None:
        notes.append("This run had no teacher: everything is compared with the dense student.")
    if scores and plan is None:
        notes.append("This run has no pruning plan: the shape of its layers is as it was.")
    return notes


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
