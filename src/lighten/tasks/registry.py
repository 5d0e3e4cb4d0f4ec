"""The registry of tasks that data and modules name."""

from collections.abc import Callable, Mapping
from typing import Any

from lighten.errors import UserError
from lighten.tasks.task import Task
from lighten.utils.registry import Builder, Registry

NEEDED = ("reported", "loss", "soft_loss", "metrics")
"""What a task cannot do without."""

_REGISTRY = Registry(
    "task",
    group="lighten.tasks",
    builtin={
        "classification": "lighten.tasks.classification",
        "multilabel": "lighten.tasks.multilabel",
        "regression": "lighten.tasks.regression",
        "segmentation": "lighten.tasks.segmentation",
        "image": "lighten.tasks.image",
        "detection": "lighten.tasks.detection",
        "keypoints": "lighten.tasks.keypoints",
        "token_classification": "lighten.tasks.tokens",
        "masked_lm": "lighten.tasks.tokens",
    },
    given=(),
)


def register_task(name: str) -> Callable[[Builder], Builder]:
    """Return a decorator that makes a subclass of :class:`lighten.tasks.task.Task` available as ``name``.

    Raises:
        UserError: if another module registered the name, or the class lacks a required part.

    Example:
        >>> @register_task("corners")
        ... @dataclass(frozen=True, kw_only=True)
        ... class Corners(Task):
        ...     reported = {"distance": Meaning("Distance in pixels", lower_is_better=True)}
        ...
        ...     def loss(self, answers, labels, **_):
        ...         return (answers - labels).square().mean()
        ...
        ...     def soft_loss(self, answers, teacher, temperature, **_):
        ...         return (answers - teacher).square().mean()
        ...
        ...     def metrics(self, outputs):
        ...         return {"distance": MeanAbsoluteError()}
    """

    def add(builder: Builder) -> Builder:
        check_task_class(builder, name)
        builder.name = name  # type: ignore[attr-defined]
        return _REGISTRY.register(name)(builder)

    return add


def check_task_class(builder: Any, name: str) -> None:
    """Raise ``UserError`` unless a class is a task, with every part that the package asks each task for."""
    if not (isinstance(builder, type) and issubclass(builder, Task)):
        raise UserError(f"task {name!r} is {builder!r}, expected a subclass of lighten.tasks.task.Task")
    lacks = [part for part in NEEDED if getattr(builder, part) is getattr(Task, part)]
    if lacks:
        raise UserError(f"task {name!r} lacks {', '.join(lacks)}; every task has {', '.join(NEEDED)}")


def task_names() -> list[str]:
    """Return the names that a task may be given by, without importing the tasks."""
    return _REGISTRY.names()


def build_task(name: str, **settings: Any) -> Task:
    """Return a task with its settings.

    Raises:
        UserError: if the name or a setting is unknown, or a setting's value is out of range.
    """
    task: Task = _REGISTRY.get(name)(**_REGISTRY.bind(name, settings))
    return task


def task_of(given: "str | Mapping[str, Any] | Task") -> Task:
    """Return a task as it is, or the one of a name, or of what :meth:`Task.settings` returned.

    Raises:
        UserError: as :func:`build_task`.
    """
    if isinstance(given, Task):
        return given
    if isinstance(given, Mapping):
        return build_task(**given)
    return build_task(given)
