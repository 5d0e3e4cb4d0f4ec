"""Shrinking of an encoder's feed-forward layers before training."""

from fnmatch import fnmatchcase

from torch import nn

from lighten.errors import UserError
from lighten.models.transformers import options_of
from lighten.pruning.cut import shrink
from lighten.pruning.planner import plan_pruning
from lighten.pruning.settings import PruneSettings
from lighten.utils.clone import clone
from lighten.utils.compression import record_, record_of
from lighten.utils.inputs import ExampleInput

FEED_FORWARD = ("*.layer.*.intermediate.dense", "*.layer.*.ffn.lin1")
"""Names of the layers whose nodes may go: those of BERT and RoBERTa, and of DistilBERT."""


def shrink_feed_forward(
    model: nn.Module, amount_kept: float, example_input: ExampleInput, *, score: str = PruneSettings.score
) -> nn.Module:
    """Return a copy of an encoder with a share of the feed-forward nodes of each layer.

    The hidden width and the attention heads stay, for the configs of these families have no words for heads apart from
    the hidden width. The new config says the new width, so that ``save_pretrained`` and ``from_pretrained``, and
    ``lighten.save`` and ``load``, give the result back, and it can be pruned again like any other model.

    Args:
        model: BERT, RoBERTa or DistilBERT of ``transformers``; left as it is.
        amount_kept: share of the nodes that stay, in (0, 1]; 1 is a plain copy.
        example_input: to run it with, such as ``{"input_ids": …, "attention_mask": …}``, int64 (batch, length).
        score: which nodes stay, as in :func:`lighten.plan_pruning`.

    Raises:
        UserError: if the share is out of range, the model has no such layers, or as :func:`lighten.plan_pruning`.
    """
    if isinstance(amount_kept, bool) or not 0 < amount_kept <= 1:
        raise UserError(f"width={amount_kept!r}: expected the share of the feed-forward nodes to keep, in (0, 1]")
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Embedding)]
    nodes = [name for name in layers if any(fnmatchcase(f".{name}", pattern) for pattern in FEED_FORWARD)]
    if not nodes or not hasattr(model, "config"):
        raise UserError(f"{type(model).__name__} has no feed-forward layers of BERT, RoBERTa or DistilBERT to narrow")
    if amount_kept == 1:
        return clone(model)
    others = [name for name in layers if name not in nodes]
    plan = plan_pruning(model, example_input, 1 - amount_kept, score=score, scope="uniform", exclude=others)
    small = shrink(model, plan)
    spec = record_of(model).spec
    if spec is not None:
        spec = {**spec, "options": options_of(small, spec["options"].get("head"))}
    record_(small, spec=spec, plan=None)  # the config says all of the plan
    return small
