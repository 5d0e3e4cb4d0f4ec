"""A student taught by a teacher's soft labels."""

from lighten.distillation import loss

__all__ = ["loss"]
