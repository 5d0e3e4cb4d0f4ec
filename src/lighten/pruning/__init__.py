"""Structured pruning: whole filters, nodes and heads, chosen, masked and cut."""

from typing import TYPE_CHECKING

from lighten.utils.lazy import lazy

if TYPE_CHECKING:
    from lighten.pruning.cut import shrink
    from lighten.pruning.decide import plan_pruning
    from lighten.pruning.mask import mask_
    from lighten.pruning.plan import Plan

__all__ = ["Plan", "mask_", "plan_pruning", "shrink"]
__getattr__ = lazy(__name__, {"Plan": "plan", "mask_": "mask", "plan_pruning": "decide", "shrink": "cut"})
