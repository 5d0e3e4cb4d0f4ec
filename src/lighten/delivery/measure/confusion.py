"""Confusion matrices of a run's models on the test split, ``confusion.json``."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lighten.delivery.folders.run import read_json, write_text

FILE = "confusion.json"


def write_confusion(run: Path, classes: Sequence[str], predicted: Mapping[Any, np.ndarray], labels: np.ndarray) -> Path:
    """Write how often each model gives each answer for each label, those left out that never occur.

    Args:
        run: the run folder.
        classes: their names.
        predicted: class indices by model, shape (samples,).
        labels: class indices, shape (samples,).
    """
    answered = {str(model): _counts(answers, labels) for model, answers in predicted.items()}
    return write_text(run / FILE, json.dumps({"schema": 1, "classes": list(classes), "models": answered}) + "\n")


def confusion_rows(run: Path) -> tuple[list[str], list[list[Any]]]:
    """Return the table of a run: columns ``label``, ``answer`` and one for each model, and its rows, counts.

    Raises:
        UserError: if there is no such file, or it is broken.
    """
    found = read_json(run / FILE, made_by=f"lighten measure {run}")
    models, names = found["models"], found["classes"]
    counts = {model: {(label, answer): count for label, answer, count in rows} for model, rows in models.items()}
    pairs = sorted({pair for rows in counts.values() for pair in rows})
    rows = [[names[a], names[b], *(counts[model].get((a, b), 0) for model in models)] for a, b in pairs]
    return ["label", "answer", *models], rows


def _counts(answers: np.ndarray, labels: np.ndarray) -> list[list[int]]:
    pairs, counts = np.unique(np.stack([labels, answers], axis=1), axis=0, return_counts=True)
    return [[int(label), int(answer), int(count)] for (label, answer), count in zip(pairs, counts, strict=True)]
