"""Arguments that a forward takes for its loss alone, such as labels."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lighten.utils.inputs import Call, leaves_of, map_tensors
from lighten.utils.preserve import preserved, random_state_kept


def without_loss_arguments(model: nn.Module, call: Call) -> Call:
    """Return a call without the arguments that only a loss is computed from.

    The loss of a detector matches boxes by value, which no graph can say; and no channel of a network depends on it.
    A keyword, or the last positional, is one of these where the forward answers the same without it, in evaluation
    mode, apart from what it no longer puts out, a single number among that.

    Args:
        model: modes, weights and random state are left as found.
        call: with real values; what cannot be run without labels needs them.
    """
    args, kwargs = call
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves((args[1:], kwargs))):
        return call
    with preserved(model), torch.no_grad():
        model.eval()
        whole = _outputs(model, call)
        if not any(_is_number(value) for value in whole or ()):
            return call
        shorter = [(args[:-1], kwargs)] if len(args) > 1 else []
        for less in (*shorter, *((args, {k: v for k, v in kwargs.items() if k != name}) for name in kwargs)):
            answers = _outputs(model, less)
            if answers and whole and _lacks_a_number(answers, whole):
                return without_loss_arguments(model, less)
    return call


def _outputs(model: nn.Module, call: Call) -> list[Tensor] | None:
    args, kwargs = map_tensors(Tensor.clone, call)
    try:
        with random_state_kept(model):
            torch.manual_seed(0)
            found = leaves_of(model(*args, **kwargs))
    except Exception:  # whatever a forward raises that lacks an argument
        return None
    return [value for value in found if isinstance(value, Tensor)]


def _is_number(value: Tensor) -> bool:
    return value.ndim == 0 and value.is_floating_point()


def _lacks_a_number(answers: list[Tensor], whole: list[Tensor]) -> bool:
    """Say whether ``answers`` are ``whole`` in the same order, without some, and with at least one number less."""
    rest: list[Any] = list(answers)
    gone = []
    for value in whole:
        if rest and value.shape == rest[0].shape and torch.equal(value, rest[0]):
            rest.pop(0)
        else:
            gone.append(value)
    return not rest and any(_is_number(value) for value in gone)
