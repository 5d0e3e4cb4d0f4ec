"""Tasks: tokens."""

from dataclasses import dataclass

from lighten.tasks.registry import register_task
from lighten.tasks.task import Task


@register_task("token_classification")
@dataclass(frozen=True, kw_only=True)
class TokenClassification(Task):
    """A class for each token: labels int64 (batch, length), answers (batch, length, classes)."""


@register_task("masked_lm")
@dataclass(frozen=True, kw_only=True)
class MaskedLM(Task):
    """The tokens that were masked: labels int64 (batch, length), answers (batch, length, tokens)."""
