"""Answers of a model folder to a stranger's files or rows: classes, numbers, masks, pictures, boxes, points."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lighten.data.image_reader import ImageReader
from lighten.data.preprocessing import Reader, reader_of
from lighten.delivery.folders.model import CONFIG, load
from lighten.delivery.folders.run import read_json
from lighten.delivery.runtimes.runners import Runner, open_runner
from lighten.errors import UserError
from lighten.tasks import task_of
from lighten.tasks.task import Task
from lighten.utils.inputs import Call

BATCH = 32
"""Files that are read and answered at a time."""


class Prediction(NamedTuple):
    """An answer.

    Attributes:
        source: the file or text that it is of, or ``FILE row N``.
        answer: JSON types (a class with its odds, a number, odds of labels; a list of marks, each with ``label``,
            ``odds``, and ``box`` (x0, y0, x1, y1) or ``point`` (x, y) in pixels of the picture itself), or an array: a
            mask of class indices (height, width), or a picture, uint8 (height, width, 3).
    """

    source: str
    answer: Any


def predict(folder: str | Path, sources: Sequence[Any], *, file: str | Path | None = None) -> list[Prediction]:
    """Return a model's predictions for files, rows or texts, which are preprocessed like its training data.

    Args:
        folder: ``student/`` of a run, which contains the preprocessing of its data.
        sources: pictures (paths, or anything that Pillow opens), tables (paths, or rows as mappings), or texts.
        file: an exported file of the same model to run instead, such as ``student.onnx``.

    Raises:
        UserError: if the folder has no preprocessing, or a source cannot be read.

    Example:
        >>> predict("runs/own_images/one/student", ["cat.jpg"])  # doctest: +SKIP
        [Prediction(source='cat.jpg', answer={'class': 'cat', 'odds': 0.93})]
    """
    folder = Path(folder)
    if not sources:
        raise UserError(f"{folder}: nothing to predict; give files, rows or texts")
    config = read_json(folder / CONFIG, made_by="lighten shrink RUN")
    task, names = task_of(config.get("task", "classification")), config.get("classes", [])
    model = load(folder) if file is None else Path(file)
    found: list[Prediction] = []
    with open_runner(model) as runner:
        reader = _reader(folder, config)
        for labels, call in _calls(reader, sources, tables=_is_table(config)):
            values = _answers(runner, call)
            some = sources[len(found) : len(found) + len(values)]
            marks = _marks(task, reader, values, some, names)
            answers = task.readable(values, names) if marks is None else marks
            found += [Prediction(*pair) for pair in zip(labels or _rows(sources, len(answers)), answers, strict=True)]
    return found


def _marks(
    task: Task, reader: Reader, values: Tensor, sources: Sequence[Any], names: Sequence[str]
) -> list[Any] | None:
    """Return what answers mark in each picture, in its own pixels; ``None`` where they mark nothing."""
    if not isinstance(reader, ImageReader):
        return None
    marks = [task.marks(value, names) for value in values]
    if any(one is None for one in marks):
        return None
    return [reader.in_pixels(source, one or []) for source, one in zip(sources, marks, strict=True)]


def _answers(runner: Runner, call: Call) -> Tensor:
    answers = torch.from_numpy(np.ascontiguousarray(runner.run(runner.feed(call))))
    if not bool(answers.isfinite().all()):
        raise UserError(f"{runner.name}: its answers hold NaN or infinity; look at the inputs")
    return answers


def _calls(reader: Reader, sources: Sequence[Any], *, tables: bool) -> Iterator[tuple[list[str] | None, Call]]:
    """Yield batches with the names of what they are of; a table has its own number of rows."""
    if tables:
        yield None, reader.read(sources)
        return
    for start in range(0, len(sources), BATCH):
        some = sources[start : start + BATCH]
        labels = [str(s) if isinstance(s, str | Path) else f"{start + i + 1}" for i, s in enumerate(some)]
        yield labels, reader.read(some)


def _rows(sources: Sequence[Any], count: int) -> list[str]:
    where = f"{sources[0]} " if len(sources) == 1 and isinstance(sources[0], str | Path) else ""
    return [f"{where}row {i + 1}" for i in range(count)]


def _is_table(config: Any) -> bool:
    return config.get("preprocessing", {}).get("kind") == "numbers"


def _reader(folder: Path, config: Any) -> Reader:
    """Return what prepares inputs.

    Raises:
        UserError: if the folder does not say how.
    """
    if "preprocessing" in config:
        return reader_of(config["preprocessing"])
    if (folder / "tokenizer_config.json").exists():
        return _Texts(folder, int(config["model"]["input_shape"][0]))
    name = config.get("data", {}).get("name", "unnamed")
    raise UserError(
        f"{folder}: its data, {name}, do not say how a file becomes an input; prepare it yourself and call "
        "lighten.load(folder)"
    )


class _Texts:
    """Prepares texts with the tokenizer of a folder."""

    def __init__(self, folder: Path, length: int) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.length = length

    def read(self, sources: Sequence[Any]) -> Call:
        """Return the arguments of a model for texts."""
        batch = self.tokenizer(
            [str(text) for text in sources], padding=True, truncation=True, max_length=self.length, return_tensors="pt"
        )
        return (), {name: batch[name] for name in ("input_ids", "attention_mask")}
