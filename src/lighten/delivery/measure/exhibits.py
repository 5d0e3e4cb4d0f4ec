"""What a report shows of a run's answers: a confusion table, points of predicted against true, pictures or marks."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lighten.delivery.folders.run import write_json
from lighten.delivery.measure.confusion import ConfusionTable
from lighten.delivery.runtimes.runners import Runner
from lighten.tasks.task import Task
from lighten.utils.batch import BatchFormat
from lighten.utils.inputs import map_tensors

POINTS, PICTURES = "points.json", "pictures.json"
"""Files of a run folder."""
MAX_POINTS = 1000
"""Points that are kept of each model, evenly taken from all."""
WORST, MEDIAN = 3, 3
"""Samples that are shown: those that the compressed model does worst, and those in the middle."""
MAX_SIDE = 256
"""Pixels that a picture has at most in a report."""


class Points:
    """Collects the first target's true values and each model's answers, in their unit.

    Args:
        task: restores numbers in their unit.
    """

    def __init__(self, task: Task) -> None:
        self.restored = getattr(task, "restored", lambda values: values)
        self.true: list[np.ndarray] = []
        self.answers: dict[str, list[np.ndarray]] = {}

    def __call__(self, labels: Tensor, kept: Tensor, found: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Add a batch."""
        self.true.append(self.restored(kept.double())[:, 0].numpy())
        for name, (_, rows) in found.items():
            self.answers.setdefault(name, []).append(self.restored(rows.double())[:, 0].numpy())

    def write(self, run: Path, names: Sequence[str], models: Sequence[str]) -> Path:
        """Write ``points.json``: every so many samples, with true values and answers by model."""
        true = np.concatenate(self.true)
        taken = slice(None, None, max(1, -(-len(true) // MAX_POINTS)))
        answers = {name: np.concatenate(self.answers[name])[taken].tolist() for name in models}
        about = {"schema": 1, "target": str(names[0]) if names else "", "true": true[taken].tolist()}
        return write_json(run / POINTS, {**about, "models": answers})


def exhibit_of(task: Task) -> Any:
    """Return what collects a task's exhibit while models are evaluated; ``None`` where that takes no batch."""
    if task.exhibit == "confusion":
        return ConfusionTable()
    return Points(task) if task.exhibit == "scatter" else None


def write_pictures(
    run: Path,
    task: Task,
    runners: Mapping[str, Runner],
    dataloader: Iterable[Any],
    scores: np.ndarray,
    names: Sequence[str],
    restore: Any,
) -> Path:
    """Write ``pictures.json``: input, truth and each model's answer of the worst samples and of those in the middle.

    Truth and answers are pictures, or boxes and points on the input as ``Task.marks`` has them.

    Args:
        run: the run folder.
        task: turns answers into pictures.
        runners: by model.
        dataloader: the batches that were measured, in the same order.
        scores: of the compressed model, one a sample.
        names: of the classes.
        restore: from an input (channels, height, width) to values in [0, 1].
    """
    order = np.argsort(scores, kind="stable")
    middle = max(0, len(order) // 2 - MEDIAN // 2)
    wanted = {int(i): "worst" for i in order[:WORST]} | {int(i): "median" for i in order[middle : middle + MEDIAN]}
    shown: list[tuple[int, float, dict[str, Any]]] = []
    start, marked = 0, False
    for batch in dataloader:
        parts = BatchFormat().labelled(batch)
        for sample in sorted(i for i in wanted if start <= i < start + len(parts.labels)):
            at = sample - start
            call = map_tensors(itemgetter(slice(at, at + 1)), parts.call)
            seen = _input(call, restore)
            pictures = {"input": _png(seen), "truth": _answer(task, parts.labels[at], names)}
            for name, runner in runners.items():
                pictures[name] = _answer(task, torch.from_numpy(runner.run(runner.feed(call)))[0], names)
            if not isinstance(pictures["truth"], str):
                marked, pictures["size"] = True, [seen.shape[1], seen.shape[0]]
            rank, score = wanted[sample], float(scores[sample])
            row = {"sample": sample, "rank": rank, "score": score, **pictures}
            shown.append((0 if rank == "worst" else 1, score, row))
        start += len(parts.labels)
    rows = [row for *_, row in sorted(shown, key=itemgetter(0, 1))]
    return write_json(
        run / PICTURES, {"schema": 1, "classes": list(names) if task.ranks or marked else [], "samples": rows}
    )


def _input(call: Any, restore: Any) -> np.ndarray:
    """Return the first picture of a call, uint8 (height, width, 3)."""
    tensors = [t for t in (*call[0], *call[1].values()) if isinstance(t, Tensor) and t.ndim == 4]
    values = restore(tensors[0][0].float()).clamp(0, 1).mul(255).round().byte()
    values = values[:3] if len(values) >= 3 else values[:1].expand(3, -1, -1)
    return values.permute(1, 2, 0).numpy()


def _answer(task: Task, values: Tensor, names: Sequence[str]) -> str | list[dict[str, Any]]:
    """Return one answer or label as a picture, or as marks on the input."""
    marks = task.marks(values.cpu(), names)
    if marks is not None:
        return marks
    found = task.picture(values.cpu())
    return _png(colours_of(found.numpy()) if found.ndim == 2 else found.numpy())


def colours_of(classes: np.ndarray, count: int = 0) -> np.ndarray:
    """Return class indices as colours, uint8 (height, width, 3): hues apart by the golden angle, -1 in white.

    Args:
        classes: (height, width).
        count: how many classes there are at least.
    """
    import colorsys

    palette = np.zeros((max(count, int(classes.max(initial=0)) + 1) + 1, 3))
    for index in range(1, len(palette) - 1):
        palette[index] = colorsys.hsv_to_rgb(index * 0.381966 % 1, 0.62, 0.93 - 0.25 * (index % 3 == 2))
    palette[0], palette[-1] = (0.13, 0.14, 0.16), (1, 1, 1)
    return (palette[classes] * 255).round().astype(np.uint8)


def _png(pixels: np.ndarray) -> str:
    """Return a picture as the base64 of its PNG, made smaller where it is large."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.NEAREST)
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()
