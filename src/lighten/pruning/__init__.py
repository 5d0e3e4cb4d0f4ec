"""Structured pruning: whole filters, nodes and heads, chosen, masked and cut."""

from lighten.pruning.mask import mask_
from lighten.pruning.plan import Plan
from lighten.pruning.planner import plan_pruning
from lighten.pruning.shrink import shrink

__all__ = ["Plan", "mask_", "plan_pruning", "shrink"]
