"""GLUE (Wang et al. 2019) through the ``datasets`` library: nine tasks of understanding English."""

from functools import partial
from typing import TYPE_CHECKING

from lighten.data.registry import register_data
from lighten.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from lighten.data.text import TextData
    from lighten.data.text_part import Texts

TASKS: dict[str, tuple[str, str | None, tuple[str, ...]]] = {
    "cola": ("sentence", None, ("unacceptable", "acceptable")),
    "sst2": ("sentence", None, ("negative", "positive")),
    "mrpc": ("sentence1", "sentence2", ("not_equivalent", "equivalent")),
    "stsb": ("sentence1", "sentence2", ("similarity",)),
    "qqp": ("question1", "question2", ("not_duplicate", "duplicate")),
    "mnli": ("premise", "hypothesis", ("entailment", "neutral", "contradiction")),
    "qnli": ("question", "sentence", ("entailment", "not_entailment")),
    "rte": ("sentence1", "sentence2", ("entailment", "not_entailment")),
    "wnli": ("sentence1", "sentence2", ("not_entailment", "entailment")),
}
"""Columns of the texts, and the names of the classes by number; ``stsb`` is a regression, 0 to 5."""

_TEST_SPLIT = {"mnli": "validation_matched"}


@register_data("glue")
def glue(
    *,
    batch_size: int,
    seed: int,
    workers: int,
    task_name: str,
    path: str = "nyu-mll/glue",
    validation: int = 500,
    tokenizer: str = "minilm",
    max_length: int = 128,
    bucket: bool = True,
    objective: str = "labels",
) -> "TextData":
    """Build the data module of a task of GLUE.

    The labels of GLUE's test part are hidden, so that its validation part is what is tested on, as papers do;
    ``validation`` samples for every choice are held out of the training part.

    Args:
        batch_size: samples of one process.
        seed: of order and masks.
        workers: processes that fetch batches ahead.
        task_name: one of ``TASKS``.
        path: name on the hub, or a local copy of it, with a folder for each task.
        validation: samples held out of the training part.
        tokenizer: ``minilm``, a folder, or a name on the hub.
        max_length: tokens of a sample, special ones included.
        bucket: batches of similar length in training, which pads less.
        objective: ``labels``, or ``mlm`` to hide tokens and ask for them.

    Raises:
        UserError: if the task is unknown.
    """
    from lighten.data.text import TextData

    if task_name not in TASKS:
        raise UserError(f"data glue: task_name={task_name!r}; {did_you_mean(str(task_name), TASKS)}")
    return TextData(
        partial(read_task, path, task_name),
        task=_kind(task_name),
        class_names=TASKS[task_name][2],
        licence=f"GLUE {task_name}: that of its source, see https://gluebenchmark.com; cite Wang et al. 2019, GLUE",
        batch_size=batch_size, seed=seed, workers=workers, validation=validation,
        tokenizer=tokenizer, max_length=max_length, bucket=bucket, objective=objective,
    )  # fmt: skip


def read_task(path: str, task_name: str) -> "Texts":
    """Return training and validation part of a task; the latter is the test part here.

    Raises:
        UserError: if the data set cannot be had, or is not GLUE.
    """
    from lighten.data.table import Columns, read_splits

    text, pair, names = TASKS[task_name]
    kind = _kind(task_name)
    columns = Columns(text, pair, ("label",), names if kind == "classification" else None, kind)
    return read_splits(columns, path, task_name, _TEST_SPLIT.get(task_name, "validation"))


def _kind(task_name: str) -> str:
    return "regression" if task_name == "stsb" else "classification"
