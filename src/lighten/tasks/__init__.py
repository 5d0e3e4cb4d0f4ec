"""What networks answer: a class, several, a number, a mask, a picture, boxes, points; one file a task."""

from lighten.tasks.registry import build_task, register_task, task_names, task_of

__all__ = ["build_task", "register_task", "task_names", "task_of"]
