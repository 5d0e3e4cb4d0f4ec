"""The contents of ``scores.json``: types, arithmetic, reading and writing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np

from lighten.delivery.folders.run import read_json, write_json
from lighten.delivery.measure.latency import Latency
from lighten.errors import UserError
from lighten.utils.fingerprint import fingerprint_of

SCHEMA = 1
SEAL = "seal"
"""What ``scores.json`` calls the SHA-256 of its other entries: an edited one is known by it."""

Role = Literal["teacher", "student", "compressed"]
ROLES: tuple[Role, ...] = ("teacher", "student", "compressed")


class ModelScores(TypedDict):
    """What is measured of one model; latencies by ``batch_1``, ``batch_32``."""

    accuracy: float
    macro_f1: float
    parameters: int
    macs: int
    bytes: int
    runtime: str
    threads: int
    latency_ms: dict[str, Latency]
    logit_error: NotRequired[float]


class Comparison(TypedDict):
    """The compressed model against the reference: ratios above one mean smaller or faster."""

    retention: float
    size_ratio: float
    mac_ratio: float
    parameter_ratio: float
    speedup_batch_1: float
    speedup_batch_32: float
    agreement: float
    flips: int
    flips_of: int
    logit_error: NotRequired[float]


class Scores(TypedDict):
    """One run's ``scores.json``.

    ``models.student`` is the dense float student, ``models.compressed`` the int8 file; ``models.teacher`` is
    null where there was none. ``comparison.logit_error`` is how far the int8 file's logits are off those of the
    fake-quantized network in PyTorch, relative to their size. ``gate`` compares the int8 file with the same network in
    float32, ``targets`` the student's files in their runtimes. ``classes`` holds the share of each class that each
    model finds; ``provenance`` says what was measured, where and with what.
    """

    schema: int
    recipe: str
    models: dict[Role, ModelScores | None]
    comparison: Comparison
    gate: NotRequired[dict[str, Any]]
    targets: NotRequired[dict[str, Any]]
    classes: dict[str, Any]
    provenance: dict[str, Any]


def reference_of(scores: Scores) -> tuple[Role, ModelScores]:
    """Return role and figures of what the compressed model is compared with: teacher, else student."""
    teacher, student = scores["models"]["teacher"], scores["models"]["student"]
    if teacher is not None:
        return "teacher", teacher
    assert student is not None
    return "student", student


def compare(reference: ModelScores, compressed: ModelScores) -> dict[str, float]:
    """Return retention and the ratios of the comparison; speedups divide medians."""
    return {
        "retention": _ratio(compressed["accuracy"], reference["accuracy"]),
        "size_ratio": _ratio(reference["bytes"], compressed["bytes"]),
        "mac_ratio": _ratio(reference["macs"], compressed["macs"]),
        "parameter_ratio": _ratio(reference["parameters"], compressed["parameters"]),
    } | {
        f"speedup_{batch}": _ratio(reference["latency_ms"][batch]["median"], latency["median"])
        for batch, latency in compressed["latency_ms"].items()
    }


def quality(predicted: np.ndarray, labels: np.ndarray, classes: int) -> tuple[float, float, list[float | None]]:
    """Return accuracy, macro-F1 and each class's recall.

    Args:
        predicted: class indices, shape (samples,).
        labels: class indices, shape (samples,).
        classes: how many there are. Classes in neither labels nor predictions do not count in macro-F1, and
            a class without samples has no recall.
    """
    confusion = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    hits, actual, given = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    seen = actual + given > 0
    f1 = 2 * hits[seen] / (actual + given)[seen]
    recall = [float(h / n) if n else None for h, n in zip(hits, actual, strict=True)]
    return float(hits.sum() / len(labels)), float(f1.mean()), recall


def read_scores(run: Path) -> Scores:
    """Read a run's ``scores.json``.

    Raises:
        UserError: if it is missing, broken, or of a schema that this version does not know.
    """
    path = run / "scores.json"
    scores = read_json(path, made_by=f"lighten measure {run}")
    scores.pop(SEAL, None)
    if scores.get("schema") != SCHEMA or not {"recipe", "models", "comparison"} <= set(scores):
        raise UserError(
            f"{path}: schema {scores.get('schema')!r}, expected {SCHEMA}; make it again with `lighten measure {run}`"
        )
    return scores  # type: ignore[return-value]


def write_scores(run: Path, scores: Scores) -> Path:
    """Write a run's ``scores.json``, whole or not at all; its last entry is the SHA-256 of the others."""
    return write_json(run / "scores.json", {**scores, SEAL: seal_of(scores)})


def seal_of(scores: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of scores, whatever seal they hold themselves."""
    return fingerprint_of(**{name: value for name, value in scores.items() if name != SEAL})


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else 0.0
