"""Publication of a finished run to its logger: final scores; in W&B also tables and the model with its lineage."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers.logger import Logger

from lighten.delivery.folders.model import CONFIG
from lighten.delivery.folders.run import read_json, recipe_name
from lighten.delivery.measure.confusion import FILE, confusion_rows
from lighten.delivery.measure.scores import Scores, read_scores
from lighten.pruning.plan import Plan
from lighten.training.record import read
from lighten.training.wandb_run import WandbRun

PLAN = ("group", "layers", "width_before", "width_after", "kept", "lowest_score", "highest_score", "macs", "score")
"""Columns of the plan's table; ``kept`` and ``macs`` are shares."""


def publish(logger: Logger | Literal[False], run: Path) -> None:
    """Give a logger the final figures of a run folder, ``delivery/…``; call it on rank zero, after all files are there.

    In W&B they are in the run's summary, beside the tables ``plan`` and ``confusion``, and the folder
    ``student/`` is an artifact, made by this run from the artifacts of teacher and data, which are known by their
    fingerprints. CSV and TensorBoard get the figures at the last step.

    Raises:
        UserError: if a file of the run is broken.
    """
    if not logger:
        return
    scores = read_scores(run) if (run / "scores.json").exists() else None
    figures = {} if scores is None else figures_of(scores)
    if isinstance(logger, WandbRun):
        _tell_wandb(logger, run, figures)
    elif figures:
        history = run / "history.jsonl"
        steps = [line["step"] for line in read(history)] if history.exists() else []
        logger.log_metrics(figures, step=max(steps, default=1) - 1)
        logger.save()
        logger.finalize("success")


def figures_of(scores: Scores) -> dict[str, float]:
    """Return the figures of a ``scores.json`` by name: ``delivery/<model>/<figure>`` and ``delivery/<comparison>``."""
    named: dict[str, float] = {}
    for role, model in scores["models"].items():
        if model is not None:
            known = {key: value for key, value in model.items() if isinstance(value, int | float) and key != "threads"}
            times = {f"latency_{batch}_ms": time["median"] for batch, time in model["latency_ms"].items()}
            named |= {f"delivery/{role}/{key}": value for key, value in {**known, **times}.items()}
    compared: Mapping[str, Any] = scores["comparison"]
    alike = {f"delivery/{key}": float(value) for key, value in compared["likeness"].items() if value is not None}
    return named | alike | {f"delivery/{key}": float(value) for key, value in compared.items() if key != "likeness"}


def plan_rows(plan: Plan) -> list[list[Any]]:
    """Return a row of ``PLAN`` for each group."""
    return [
        [
            g.name, ", ".join(g.layers), g.width_before, g.width_after, g.width_after / g.width_before,
            min(g.scores), max(g.scores), g.macs, g.score,
        ]
        for g in plan.groups
    ]  # fmt: skip


def _tell_wandb(logger: WandbRun, run: Path, figures: Mapping[str, float]) -> None:
    import wandb

    logger.catch_up()
    experiment = logger.experiment
    experiment.summary.update(dict(figures))
    if (run / "plan.json").exists():
        rows = plan_rows(Plan.from_json((run / "plan.json").read_text(encoding="utf-8")))
        experiment.summary["plan"] = wandb.Table(columns=list(PLAN), data=rows)
    if (run / FILE).exists():
        columns, rows = confusion_rows(run)
        experiment.summary["confusion"] = wandb.Table(columns=columns, data=rows)
    _send_model(experiment, run, figures)


def _send_model(experiment: Any, run: Path, figures: Mapping[str, float]) -> None:
    import wandb

    config = read_json(run / "student" / CONFIG, made_by=f"lighten shrink {run}")
    data, teacher = config["data"], config.get("made_of", {}).get("teacher")
    _use(experiment, data["name"], "dataset", {key: data.get(key) for key in ("name", "options", "fingerprint")})
    if teacher is not None:
        _use(experiment, f"{recipe_name(run)}-teacher", "model", {"fingerprint": teacher})
    model = wandb.Artifact(_name(f"{recipe_name(run)}-student"), "model", metadata=dict(figures))
    for path in sorted(run.glob("student/*")) + sorted(run.glob("student.*")):
        name = str(path.relative_to(run))
        if path.is_file():
            model.add_file(str(path), name, policy="immutable")
    experiment.log_artifact(model)


def _use(experiment: Any, name: str, kind: str, facts: Mapping[str, Any]) -> None:
    """Say that the run is made from something that stays where it is: what is sent are the facts that identify it."""
    import wandb

    artifact = wandb.Artifact(_name(name), kind, metadata=dict(facts))
    with artifact.new_file("fingerprint.json") as file:
        json.dump(dict(facts), file, indent=2, sort_keys=True)
    if experiment.offline:
        experiment._log_artifact(artifact, use_after_commit=True)  # what use_artifact does, which refuses when offline
    else:
        experiment.use_artifact(artifact)


def _name(name: str) -> str:
    return re.sub(r"[^\w.-]", "-", name)
