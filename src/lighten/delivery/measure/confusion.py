"""Confusion matrices of a run's models on the test split, ``confusion.json``."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lighten.delivery.folders.run import read_json, write_text
from lighten.tasks.task import named

FILE = "confusion.json"


class ConfusionTable:
    """Counts how often each model gives each answer for each label."""

    def __init__(self) -> None:
        self.outputs = 0
        self.counts: dict[str, np.ndarray] = {}

    def __call__(self, labels: Tensor, kept: Tensor, found: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Add a batch: labels that count, and each model's logits (rows, classes)."""
        for name, (_, rows) in found.items():
            self.outputs = rows.shape[-1]
            pairs = (kept * self.outputs + rows.argmax(-1)).numpy()
            counted = np.bincount(pairs, minlength=self.outputs**2)
            self.counts[name] = self.counts.get(name, 0) + counted

    def write(self, run: Path, names: Sequence[str], models: Sequence[str]) -> Path:
        """Write ``confusion.json``; pairs that never occur are left out."""
        counts = {name: self._rows(self.counts[name]) for name in models}
        table = {"schema": 1, "classes": named(names, self.outputs), "models": counts}
        return write_text(run / FILE, json.dumps(table) + "\n")

    def _rows(self, counts: np.ndarray) -> list[list[int]]:
        return [[int(i // self.outputs), int(i % self.outputs), int(counts[i])] for i in np.flatnonzero(counts)]


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
