"""Knowledge distillation: a student learns from a teacher."""

from typing import TYPE_CHECKING

from lighten.utils.lazy import lazy

if TYPE_CHECKING:
    from lighten.distillation import features, loss

__all__ = ["features", "loss"]
__getattr__ = lazy(__name__, {})
