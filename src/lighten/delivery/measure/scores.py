"""The contents of ``scores.json``: types, arithmetic, reading and writing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from lighten.delivery.folders.run import read_json, write_json
from lighten.errors import UserError
from lighten.tasks import task_of
from lighten.tasks.task import Task
from lighten.utils.fingerprint import fingerprint_of

SCHEMA = 2
SEAL = "seal"
"""What ``scores.json`` calls the SHA-256 of its other entries: an edited one is known by it."""

Role = Literal["teacher", "student", "compressed"]
ROLES: tuple[Role, ...] = ("teacher", "student", "compressed")

ModelScores = dict[str, Any]
"""What is measured of one model: the task's metrics by name, such as ``accuracy`` and ``macro_f1``, ``parameters``,
``macs``, ``bytes``, ``runtime``, ``threads``, ``latency_ms`` by ``batch_1`` and ``batch_32``; ``logit_error`` where a
file was compared with its network."""


class Comparison(TypedDict):
    """The compressed model against the reference: ratios above one mean smaller or faster.

    ``likeness`` holds how alike both answer, by the task's names; ``flips`` counts answers of the file that do not mean
    what the fake-quantized network's in PyTorch mean, of ``flips_of``, where answers can be equal.
    """

    retention: float
    size_ratio: float
    mac_ratio: float
    parameter_ratio: float
    speedup_batch_1: float
    speedup_batch_32: float
    likeness: dict[str, float]
    agreement: NotRequired[float]
    flips: NotRequired[int]
    flips_of: NotRequired[int]
    logit_error: NotRequired[float]


class Scores(TypedDict):
    """One run's ``scores.json``.

    ``task`` says what is answered, which metric leads and how each is shown (:func:`describe_task`).
    ``models.student`` is the dense float student, ``models.compressed`` the int8 file; ``models.teacher`` is
    null where there was none. ``comparison.logit_error`` is how far the int8 file's answers are off those of the
    fake-quantized network in PyTorch, relative to their size. ``gate`` compares the int8 file with the same network in
    float32, ``targets`` the student's files in their runtimes. ``parts`` holds the quality of each model part by part,
    such as class by class; ``provenance`` says what was measured, where and with what.
    """

    schema: int
    recipe: str
    task: dict[str, Any]
    models: dict[Role, ModelScores | None]
    comparison: Comparison
    gate: NotRequired[dict[str, Any]]
    targets: NotRequired[dict[str, Any]]
    parts: dict[str, Any]
    provenance: dict[str, Any]


def describe_task(task: Task) -> dict[str, Any]:
    """Return what ``scores.json`` says of a task, so that reports need nothing else.

    Returns:
        ``settings`` from which ``task_of`` makes it again, ``name``, ``metric`` (the one that leads),
        ``lower_is_better``, ``unit``, ``exhibit``, ``metrics`` and ``alike``: label, format and direction by name.
    """
    return {
        "name": task.name,
        "settings": task.settings(),
        "metric": task.metric,
        "lower_is_better": task.lower_is_better,
        "unit": getattr(task, "unit", ""),
        "exhibit": task.exhibit,
        "metrics": {name: meaning._asdict() for name, meaning in task.reported.items()},
        "alike": {name: meaning._asdict() for name, meaning in task.alike.items()},
    }


def reference_of(scores: Scores) -> tuple[Role, ModelScores]:
    """Return role and figures of what the compressed model is compared with: teacher, else student."""
    teacher, student = scores["models"]["teacher"], scores["models"]["student"]
    if teacher is not None:
        return "teacher", teacher
    assert student is not None
    return "student", student


def compare(task: Task, reference: ModelScores, compressed: ModelScores) -> dict[str, float]:
    """Return retention and the ratios of the comparison; speedups divide medians."""
    return {
        "retention": task.retention(reference, compressed),
        "size_ratio": _ratio(reference["bytes"], compressed["bytes"]),
        "mac_ratio": _ratio(reference["macs"], compressed["macs"]),
        "parameter_ratio": _ratio(reference["parameters"], compressed["parameters"]),
    } | {
        f"speedup_{batch}": _ratio(reference["latency_ms"][batch]["median"], latency["median"])
        for batch, latency in compressed["latency_ms"].items()
    }


def read_scores(run: Path) -> Scores:
    """Read a run's ``scores.json``.

    Raises:
        UserError: if it is missing, broken, or of a schema that this version does not know.
    """
    path = run / "scores.json"
    scores = read_json(path, made_by=f"lighten measure {run}")
    scores.pop(SEAL, None)
    known = scores.get("schema") in (1, SCHEMA) and {"recipe", "models", "comparison"} <= set(scores)
    if not known or (scores["schema"] == SCHEMA and "metric" not in scores.get("task", {})):
        raise UserError(
            f"{path}: schema {scores.get('schema')!r}, expected {SCHEMA}; make it again with `lighten measure {run}`"
        )
    return _of_schema_1(scores) if scores["schema"] == 1 else scores  # type: ignore[return-value]


def _of_schema_1(scores: dict[str, Any]) -> Any:
    """Return scores as they are today; those of the first schema were all of classes."""
    found = {name: value for name, value in scores.items() if name != "classes"}
    comparison = {"likeness": {"agreement": scores["comparison"].get("agreement")}, **scores["comparison"]}
    classes = scores.get("classes") or {}
    recall = {"kind": "class", "metric": "recall", "label": "Found", "format": "percent", "lower_is_better": False}
    parts = {**recall, "names": classes["names"], "values": classes["recall"]} if classes else {}
    task = describe_task(task_of("classification"))
    return {**found, "schema": SCHEMA, "task": task, "comparison": comparison, "parts": parts}


def write_scores(run: Path, scores: Scores) -> Path:
    """Write a run's ``scores.json``, whole or not at all; its last entry is the SHA-256 of the others."""
    return write_json(run / "scores.json", {**scores, SEAL: seal_of(scores)})


def seal_of(scores: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of scores, whatever seal they hold themselves."""
    return fingerprint_of(**{name: value for name, value in scores.items() if name != SEAL})


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else 0.0
