"""Configs of pruned ``transformers`` models."""

import copy
import itertools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from lighten.pruning.check import difference
from lighten.pruning.plan import Plan

WIDTHS = (
    "hidden_size", "dim", "n_embd", "d_model", "embedding_size", "intermediate_size", "hidden_dim", "n_inner", "d_ff",
    "num_attention_heads", "n_heads", "n_head", "num_key_value_heads", "head_dim", "hidden_sizes",
)  # fmt: skip
"""Keys of configs that name widths."""
MAX_TRIED = 256
"""Configs that are tried at most."""


def follow_config_(small: nn.Module, plan: Plan) -> None:
    """Give a cut model of ``transformers`` a config that builds its very shapes and computes the same.

    Where its family has no words for these widths (such as attention heads without the hidden width, in BERT), the
    config is left as it is and a warning says so; :func:`lighten.load` rebuilds such a model from the plan.
    """
    config = getattr(small, "config", None)
    if not hasattr(config, "to_dict") or not hasattr(small, "save_pretrained") or not plan.cuts:
        return
    for changes in itertools.islice(_changes(config, plan), MAX_TRIED):
        changed = _changed(config, changes)
        if changed is not None and _builds(changed, small, plan):
            for module in small.modules():
                if getattr(module, "config", None) is config:
                    module.config = changed
            return
    warnings.warn(
        f"{type(config).__name__} cannot say the widths of the cut model, so from_pretrained cannot read it; "
        "save it with lighten.save, or prune what the config names, every layer by the same share",
        stacklevel=3,
    )


def _changes(config: Any, plan: Plan) -> Iterator[Mapping[str, Any]]:
    """Yield settings for the widths in ``config``, those that change most keys first."""
    after: dict[int, set[int]] = {}
    for before, left in (*plan.widths.values(), *((g.width_before, g.width_after) for g in plan.groups)):
        after.setdefault(before, set()).add(left)
    named = config.to_dict()
    choices: dict[str, list[Any]] = {}
    for key in WIDTHS:
        value = named.get(key)
        if isinstance(value, list):
            lists = itertools.product(*(sorted(after.get(v, {v})) for v in value))
            choices[key] = [list(found) for found in itertools.islice(lists, 16)]
        elif isinstance(value, int) and not isinstance(value, bool):
            choices[key] = sorted({*after.get(value, ()), value})
    hidden, heads = (named.get(k) or getattr(config, k, None) for k in ("hidden_size", "num_attention_heads"))
    if "head_dim" not in choices and isinstance(hidden, int) and isinstance(heads, int):
        choices["head_dim"] = [None, hidden // heads]
    for values in itertools.product(*choices.values()):
        changes = dict(zip(choices, values, strict=True))
        yield {key: value for key, value in changes.items() if value != named.get(key)}


def _changed(config: Any, changes: Mapping[str, Any]) -> Any | None:
    """Return a copy of ``config`` with other settings; ``None`` where it refuses one, as a width that it computes."""
    try:
        changed = copy.deepcopy(config)
        for key, value in changes.items():
            setattr(changed, key, value)
    except Exception:  # each family has checks of its own
        return None
    return changed


def _builds(config: Any, small: nn.Module, plan: Plan) -> bool:
    """Say whether ``config`` builds a model that takes the weights of ``small`` and computes the same."""
    shapes = {name: tensor.shape for name, tensor in small.state_dict().items()}
    try:
        with torch.device("meta"):
            if {name: tensor.shape for name, tensor in type(small)(config).state_dict().items()} != shapes:
                return False
        with torch.random.fork_rng():
            built = type(small)(config)
        built.load_state_dict(small.state_dict())
        return difference(small, built, plan.example, dtype=torch.float64) <= 1e-9
    except Exception:  # whatever a config refuses
        return False
