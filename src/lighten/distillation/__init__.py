"""Knowledge distillation: a student learns from a teacher."""

from lighten.distillation import features, loss

__all__ = ["features", "loss"]
