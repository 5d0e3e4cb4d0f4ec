"""Example inputs: one tensor, a tuple of positionals or a dict of keywords, handled alike."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one forward call."""

ExampleInput = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""What the public functions accept as ``example_input``."""


def as_call(example_input: ExampleInput) -> Call:
    """Return ``(args, kwargs)`` for a tensor, a tuple (positional) or a mapping (keywords)."""
    if isinstance(example_input, Mapping):
        return (), dict(example_input)
    if isinstance(example_input, tuple):
        return example_input, {}
    return (example_input,), {}


def map_tensors(fn: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply ``fn`` to every tensor in nested tuples, lists and mappings."""
    return torch.utils._pytree.tree_map(lambda x: fn(x) if isinstance(x, Tensor) else x, tree)


def split_batch(batch: Any) -> tuple[Call, Any]:
    """Split a batch into the model's call and its labels.

    Args:
        batch: ``(inputs, labels)`` or ``(inputs, labels, keys)``, or a mapping with ``labels`` whose other entries are
            keywords of the model (``keys`` aside); a lone tensor has no labels.
    """
    if isinstance(batch, Mapping):
        return ((), {k: v for k, v in batch.items() if k not in ("labels", "keys")}), batch.get("labels")
    if isinstance(batch, list | tuple) and len(batch) in (2, 3):
        inputs, labels = batch[:2]
        return as_call(tuple(inputs) if isinstance(inputs, list) else inputs), labels
    return as_call(batch), None


def keys_of(batch: Any) -> Tensor | None:
    """Return a batch's keys, int64 (batch,), one number for each view of each sample; ``None`` where it has none."""
    if isinstance(batch, Mapping):
        return batch.get("keys")
    return batch[2] if isinstance(batch, list | tuple) and len(batch) == 3 else None


def example_of(input_shape: Sequence[int], samples: int = 2) -> ExampleInput:
    """Return zeros such as a model takes: images for (channels, height, width), tokens for (length,).

    Tokens are ``input_ids`` and ``attention_mask``, int64 (samples, length); nothing is masked.
    """
    if len(input_shape) != 1:
        return torch.zeros(samples, *input_shape)
    ids = torch.zeros(samples, *input_shape, dtype=torch.int64)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def logits_of(output: Any) -> Tensor:
    """Return the logits of a model's output: the tensor itself, ``.logits``, ``["logits"]`` or the first entry."""
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, Mapping):
        return output["logits"]
    return output[0]


def capture_call(root: nn.Module, target: nn.Module, call: Call) -> Call:
    """Run ``root`` once without gradients or side effects and return the arguments that ``target`` received.

    Train/eval modes, buffers and random state are left as found.

    Raises:
        RuntimeError: if the forward of ``root`` never reaches ``target``.
    """
    seen: list[Call] = []
    hook = target.register_forward_pre_hook(lambda _, a, k: seen.append((a, k)), with_kwargs=True)
    modes = {m: m.training for m in root.modules()}
    try:
        with torch.no_grad(), torch.random.fork_rng():
            root.eval()
            root(*call[0], **call[1])
    finally:
        hook.remove()
        for module, training in modes.items():
            module.training = training
    if not seen:
        raise RuntimeError("the forward pass never reached the module")
    return map_tensors(lambda t: t.detach().clone(), seen[0])
