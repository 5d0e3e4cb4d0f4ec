"""Structured pruning of filters, nodes and heads."""

from typing import TYPE_CHECKING

from lighten.utils.lazy import lazy

if TYPE_CHECKING:
    from lighten.pruning.cut import shrink
    from lighten.pruning.mask import mask_
    from lighten.pruning.plan import Plan
    from lighten.pruning.planner import plan_pruning

__all__ = ["Plan", "mask_", "plan_pruning", "shrink"]
__getattr__ = lazy(__name__, {"Plan": "plan", "mask_": "mask", "plan_pruning": "planner", "shrink": "cut"})
