"""A student taught by a teacher's soft labels."""

from lighten.distillation import features, loss

__all__ = ["features", "loss"]
