"""NumberData: rows of numbers and categories in memory, with splits, and whole batches at a time."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lighten.data.checks import check_at_least
from lighten.data.coding import Coding, deviation, encode, learn
from lighten.data.features import Choice, choose_features, read_cells
from lighten.data.loaders import SplitData
from lighten.data.row_split import Shares, group_keys, split_rows
from lighten.data.target import CLASSIFICATION, MULTILABEL, REGRESSION, Target, check_varies, find_target, read_target
from lighten.errors import UserError
from lighten.tasks.registry import build_task
from lighten.tasks.task import Task
from lighten.training.order import Place


@dataclass(frozen=True)
class Tables:
    """Rows of training and, where they are given, of test; where each is from, and names of classes that are known."""

    train: pa.Table
    where: str
    test: pa.Table | None = None
    test_where: str = ""
    class_names: tuple[str, ...] | None = None


class NumberSet:
    """Whole batches by (epoch, sample): a dict of ``numbers``, ``categories`` and ``labels``.

    ``numbers`` are float32 (batch, numbers), ``categories`` int64 (batch, columns); what the table lacks is left out.

    Args:
        inputs: of all samples.
        labels: (N,) or (N, targets).
        keyed: batches also have ``keys``, int64 (batch,): the sample.
    """

    def __init__(self, inputs: Mapping[str, Tensor], labels: Tensor, *, keyed: bool = False) -> None:
        self.inputs = dict(inputs)
        self.labels = labels
        self.keyed = keyed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, sample: int) -> dict[str, Tensor]:
        """Return one sample, without the batch's dimension."""
        return {name: value[0] for name, value in self.__getitems__([(0, sample)]).items()}

    def __getitems__(self, places: list[Place]) -> dict[str, Tensor]:
        """Return the batch of these (epoch, sample) pairs."""
        samples = torch.tensor([sample for _, sample in places], dtype=torch.int64)
        batch = {name: values[samples] for name, values in self.inputs.items()} | {"labels": self.labels[samples]}
        return batch | {"keys": samples} if self.keyed else batch


@dataclass(frozen=True)
class _Parts:
    """A table that was read, split and coded."""

    sets: dict[str, NumberSet]
    coding: Coding
    target: Target
    task: Task
    notes: tuple[str, ...]


class NumberData(SplitData):
    """A table of numbers and categories, with splits taken out of its training part.

    Medians, means, deviations and the known categories come from the training rows alone. What a column holds, and
    which columns are inputs, is read off the whole training file.

    Args:
        read: reads the tables; called once, when they are first needed.
        choice: of columns.
        batch_size: samples of one process.
        seed: of the order; the splits do not depend on it.
        workers: processes that fetch batches ahead; 0 is fine for rows in memory.
        shares: of validation and test.
        task: ``classification``, ``multilabel`` or ``regression``; ``None``: see :func:`find_target`.
        classes: names of the classes in the order of their numbers.
        unit: of the numbers to estimate, such as ``USD``.
        licence: one line.

    Attributes:
        keyed: set it to have keys in training batches.
        views: of a training sample.

    Raises:
        UserError: if ``batch_size`` is below 1 or ``workers`` below 0.
    """

    views = 1
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __init__(
        self,
        read: Callable[[], Tables],
        choice: Choice,
        *,
        batch_size: int,
        seed: int,
        workers: int,
        shares: Shares,
        task: str | None = None,
        classes: Sequence[str] | None = None,
        unit: str = "",
        licence: str = "not stated",
    ) -> None:
        super().__init__()
        check_at_least(0, workers=workers)
        check_at_least(1, batch_size=batch_size)
        self.batch_size = batch_size
        self.seed = seed
        self.workers = workers
        self.shares = shares
        self.unit = unit
        self.licence = licence
        self.options = {}
        self._read = read
        self._choice = choice
        self._task = task
        self._classes = classes

    @cached_property
    def parts(self) -> _Parts:
        """All of it; read when first asked for.

        Raises:
            UserError: if a file or column is missing, a cell is wrong, or there is nothing to learn.
        """
        tables, choice = self._read(), self._choice
        table, where = tables.train, tables.where
        if not table.num_rows:
            raise UserError(f"{where} has no rows, expected some")
        kinds, left = choose_features(table, choice, where)
        known = tables.class_names if self._task in (None, CLASSIFICATION) else None
        target, found = find_target(table, choice.targets, self._task, self._classes or known, where)
        if self.unit and target.task != REGRESSION:
            raise UserError(f"{where}: unit={self.unit!r} has no effect with task={target.task}; leave it out")
        labels, cells = read_target(table, target, where), read_cells(table, kinds, where)
        classes = labels if target.task == CLASSIFICATION else torch.zeros(len(labels), dtype=torch.int64)
        shares = self.shares if tables.test is None else replace(self.shares, test=None)
        rows = split_rows(classes, shares, where, groups=group_keys(table, choice.group, where))
        check_varies(labels[rows["train"]], target, where)
        coding, constant = learn(cells.take(rows["train"]), where)
        task, scale = _scale(target, labels[rows["train"]], self.unit)
        sets = {name: NumberSet(encode(coding, cells.take(r)), scale(labels[r])) for name, r in rows.items()}
        if tables.test is not None:
            if not tables.test.num_rows:
                raise UserError(f"{tables.test_where} has no rows, expected some")
            cells = read_cells(tables.test, kinds, tables.test_where)
            labels = read_target(tables.test, target, tables.test_where)
            sets["test"] = NumberSet(encode(coding, cells), scale(labels))
        notes = (*found, *left, *constant)
        for note in notes:
            rank_zero_info(f"data {self.name}: {note}")
        return _Parts(sets, coding, target, task, notes)

    @property
    def task(self) -> Task:
        """What is to be predicted, with the mean and deviation of a regression's training rows."""
        return self.parts.task

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, the labels or the numbers to estimate."""
        return self.parts.target.names

    @property
    def num_classes(self) -> int:
        """Outputs of a model."""
        return len(self.class_names)

    @property
    def input_shape(self) -> dict[str, Any]:
        """How many ``numbers`` there are, and how many ``categories`` each column has."""
        return self.parts.coding.input_shape

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found and left out, a line each."""
        return self.parts.notes

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that a model sees."""
        digest = hashlib.sha256(json.dumps([self.preprocessing(), self.class_names, self.task.settings()]).encode())
        for part in self.parts.sets.values():
            for values in (*part.inputs.values(), part.labels):
                digest.update(str(tuple(values.shape)).encode())
                digest.update(values.contiguous().numpy().data)
        return digest.hexdigest()

    def preprocessing(self) -> dict[str, Any]:
        """Return how rows become inputs, in JSON types, for :class:`lighten.data.number_reader.NumberReader`."""
        return self.parts.coding.settings()

    def prepare_data(self) -> None:
        """Read the table, so that mistakes are reported before any worker starts."""
        _ = self.parts

    def setup(self, stage: str) -> None:
        """Give the splits; the same for every stage."""
        sets = self.parts.sets
        self.train_set, self.val_set, self.test_set = sets["train"], sets["val"], sets["test"]

    @property
    def train_samples(self) -> int:
        """Samples of the training part, without those held out."""
        return len(self.parts.sets["train"])


def _scale(target: Target, labels: Tensor, unit: str) -> tuple[Task, Callable[[Tensor], Tensor]]:
    """Return the task, and what makes labels as it wants them of labels as they were read."""
    if target.task == CLASSIFICATION:
        return build_task(CLASSIFICATION), lambda labels: labels
    if target.task == MULTILABEL:
        return build_task(MULTILABEL), lambda labels: labels.float()
    mean, std = labels.mean(0), labels.std(0, correction=0)
    if not std.isfinite().all():
        std = torch.tensor([deviation(column) for column in labels.T.numpy()], dtype=labels.dtype)
    task = build_task(REGRESSION, mean=tuple(mean.tolist()), std=tuple(std.tolist()), unit=unit)
    return task, lambda labels: ((labels - mean) / std).float()
