"""The model card, ``student/README.md``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lighten.delivery.folders.run import as_plan, open_run, read_json, recipe_name, sha256, write_text
from lighten.delivery.measure.scores import Scores, read_scores, reference_of
from lighten.delivery.report import int8 as quantized
from lighten.delivery.report.figures import NAMES, differing, roles, rows, sentence
from lighten.delivery.report.templates import environment
from lighten.delivery.report.wording import format_of, label_of
from lighten.tasks import task_of
from lighten.utils.targets import exported_files

LICENCES = {"mit", "apache-2.0", "bsd-3-clause", "cc-by-4.0", "cc0-1.0"}
"""Licences that model hubs know by these names."""

HASHED = ("student/model.safetensors", "student/compression.json", *exported_files("student"))


def write_card(run: str | Path) -> Path:
    """Write ``student/README.md`` of a run folder and return its path; without scores it says so.

    Raises:
        UserError: if ``run`` is no run folder, has no ``student/``, or its ``scores.json`` is broken.
    """
    run = open_run(run)
    return write_text(run / "student" / "README.md", render(run))


def render(run: Path) -> str:
    """Return the card's Markdown."""
    config = read_json(run / "student" / "config.json", made_by=f"lighten shrink {run}")
    scores = read_scores(run) if (run / "scores.json").exists() else None
    return environment(autoescape=False).get_template("card.md").render(_context(run, config, scores))


def _context(run: Path, config: Mapping[str, Any], scores: Scores | None) -> dict[str, Any]:
    provenance = scores["provenance"] if scores else {}
    compression = quantized.read_compression(run)
    int8_vs_float, runtimes = quantized.int8_vs_float(scores), quantized.runtimes(scores)
    licence = provenance.get("data", {}).get("licence") or _licence(config)
    context = {
        "recipe": scores["recipe"] if scores else recipe_name(run),
        "model": _architecture(config).partition(" ")[0],
        "data": config["data"]["name"],
        "licence": licence,
        "licence_id": _licence_id(licence),
        "tags": _tags(compression, scores),
        "classes": config["classes"],
        **_of_task(config),
        "shape": config["model"]["input_shape"],
        "tokens": next(iter(provenance.get("timed_on", {}).values()), [None])[0],
        "mean": [f"{value:.4g}" for value in config["mean"]],
        "std": [f"{value:.4g}" for value in config["std"]],
        "made": _made(config, compression, scores),
        "machine": provenance.get("machine", {}).get("processor"),
        "worst": _worst_class(scores),
        "made_of": {name: value for name, value in config.get("made_of", {}).items() if value},
        "files": [(name, sha256(run / name)) for name in HASHED if (run / name).exists()],
        "scores": scores,
        "warnings": quantized.warnings_of(scores),
        "int8_vs_float": int8_vs_float and quantized.plain(int8_vs_float),
        "runtimes": runtimes and _runtimes(runtimes),
    }
    return context | (_table(scores) if scores else {})


def _of_task(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return how hubs call the task, and what the model takes and gives."""
    task = task_of(config.get("task", "classification"))
    shape = config["model"]["input_shape"]
    kind = (
        "table" if config.get("preprocessing", {}).get("kind") == "numbers" else "text" if len(shape) == 1 else "image"
    )
    mean, std = ([f"{value:.6g}" for value in getattr(task, key, ())] for key in ("mean", "std"))
    return {
        "pipeline": task.pipelines.get(kind), "input_kind": kind, "task": task, "unit": getattr(task, "unit", ""),
        "restored": (mean, std) if mean else None, "preprocessing": "preprocessing" in config,
    }  # fmt: skip


def _table(scores: Scores) -> dict[str, Any]:
    reference, _ = reference_of(scores)
    return {
        "sentence": sentence(scores),
        "columns": [NAMES[role] for role in roles(scores)],
        "reference": NAMES[reference].lower(),
        "rows": rows(scores),
        "differing": differing(scores),
        "metrics": _metrics(scores),
    }


def _runtimes(runtimes: quantized.Runtimes) -> dict[str, Any]:
    return {
        "heads": [f"{target.name}, `{_cell(target.file)}`" for target in runtimes.targets],
        "rows": [(label, [quantized.plain(cell) for cell in cells]) for label, cells in runtimes.rows],
        "missing": runtimes.missing,
    }


def _cell(text: str) -> str:
    """Return text that does not end a cell of a Markdown table."""
    return text.replace("|", "\\|")


def _tags(compression: Mapping[str, Any], scores: Scores | None) -> list[str]:
    distilled = scores is not None and scores["models"]["teacher"] is not None
    found = {"pruning": compression.get("plan"), "quantization": compression.get("quantization")}
    return [*(["knowledge-distillation"] if distilled else []), *(tag for tag, there in found.items() if there)]


def _made(config: Mapping[str, Any], compression: Mapping[str, Any], scores: Scores | None) -> list[str]:
    lines = [f"Architecture: {_architecture(config)}."]
    if scores and scores["models"]["teacher"] is not None:
        lines.append("Distilled: it learned from a teacher.")
    plan = as_plan(compression.get("plan"))
    if plan and plan.groups:
        before, after = (sum(getattr(group, f"width_{when}") for group in plan.groups) for when in ("before", "after"))
        lines.append(f"Pruned: {after} of {before} channels are left, the others are cut out of the weights.")
    lines += _quantized(compression)
    training = {key: value for key, value in config.get("training", {}).items() if isinstance(value, int | float | str)}
    if training:
        lines.append("Training: " + ", ".join(f"{key} {value}" for key, value in training.items()) + ".")
    return lines


def _architecture(config: Mapping[str, Any]) -> str:
    """Return what was built: options as they were given; of ``transformers``, class and depth out of a long config."""
    options = dict(config["model"].get("options", {}))
    kind = options.get("config")
    if isinstance(kind, Mapping):
        layers = next((kind[key] for key in ("num_hidden_layers", "n_layers") if key in kind), None)
        options = {"layers": layers} if layers is not None else {}
    name = ", ".join(config.get("architectures", ())) or config["model"]["name"]
    given = ", ".join(f"{key} {value}" for key, value in options.items())
    return f"{name} ({given})" if given else name


def _quantized(compression: Mapping[str, Any]) -> list[str]:
    how, count = quantized.method(compression, quote="`"), quantized.count(compression)
    left = quantized.left_in_float(compression, quote="`")
    layers = f"{count}{f'; in floating point: {left}' if left else ''}." if count else ""
    return [line] if (line := " ".join(part for part in (how, layers) if part)) else []


def _worst_class(scores: Scores | None) -> tuple[str, str] | None:
    if not scores or not scores.get("parts"):
        return None
    parts = scores["parts"]
    found = [(v, n) for v, n in zip(parts["values"]["compressed"], parts["names"], strict=True) if v is not None]
    value, name = max(found) if parts["lower_is_better"] else min(found)
    told = {"metrics": {parts["metric"]: parts}, "alike": {}, "unit": scores["task"]["unit"]}
    return f"{parts['kind']} {name}", f"{parts['label']} {format_of(told, parts['metric'], 1)(value)}"


def _metrics(scores: Scores) -> list[tuple[str, str, float]]:
    """Return the task's metrics of the compressed model: name, label, value."""
    task, compressed = scores["task"], scores["models"]["compressed"]
    assert compressed is not None
    return [(name, label_of(task, name), compressed[name]) for name in task["metrics"]]


def _licence(config: Mapping[str, Any]) -> str:
    from lighten.data import build_data

    data: Any = build_data(config["data"]["name"], **config["data"].get("options", {}))
    return data.licence


def _licence_id(licence: str) -> str:
    """Return the hub's identifier of a one-line licence, ``mit`` for ``Images: MIT, Someone``; else ``other``."""
    words = [word.strip(",;:()").lower() for word in licence.split()]
    return next((word for word in words if word in LICENCES), "other")
