"""Structured pruning of filters, nodes and heads."""

from lighten.pruning.mask import mask_
from lighten.pruning.plan import Plan
from lighten.pruning.planner import plan_pruning
from lighten.pruning.shrink import shrink

__all__ = ["Plan", "mask_", "plan_pruning", "shrink"]
