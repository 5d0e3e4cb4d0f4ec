"""Look at a model and leave it as it was."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LIBRARIES = ("torch", "lightning", "pytorch_lightning", "builtins", "wandb")
"""Packages whose objects are not looked into: they belong to the training, not to the model."""


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Leave ``model`` as it is now, whatever runs inside: attributes, hooks, weights, modes, random numbers.

    Every module's attributes get their values back, with all dicts, lists, sets and plain objects among them, which
    keep their identity. So do the numbers in parameters, buffers, gradients and other tensors that a module holds. The
    random numbers of PyTorch (on the devices of ``model``), NumPy and Python continue as if nothing had been drawn.

    Args:
        model: any module; its weights are copied for the time being.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with preserved(norm):
        ...     _ = norm.eval()(torch.ones(3, 2))
        >>> norm.training, norm.num_batches_tracked.item()
        (True, 0)
    """
    _reshard(model)
    found = Snapshot(model)
    try:
        with random_state_kept(model):
            yield
    finally:
        _reshard(model)
        found.restore()


@contextmanager
def random_state_kept(model: nn.Module) -> Iterator[None]:
    """Let the random numbers of PyTorch, NumPy and Python continue afterwards as if nothing had been drawn.

    Args:
        model: on whose devices PyTorch draws.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (a forward may draw from it)
    try:
        with torch.random.fork_rng(devices=gpus_of(model)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def gpus_of(model: nn.Module) -> list[int]:
    """Return the indices of the GPUs that hold weights of ``model``, in order."""
    return sorted({p.device.index for p in model.parameters() if p.is_cuda and p.device.index is not None})


def _reshard(model: nn.Module) -> None:
    """Put the shards of weights (FSDP2) back in their place, where a forward has put the whole ones."""
    for module in model.modules():
        reshard: Any = getattr(module, "reshard", None)
        if callable(reshard):
            reshard()


class Snapshot:
    """What modules hold: the contents of all containers, and copies of all tensors.

    Args:
        model: as it is to be again, once or often.
        weights: whether parameters' numbers are copied; without, parameters get their data back as they lie in memory,
            for work that gives them other data, but writes into none.
    """

    def __init__(self, model: nn.Module, *, weights: bool = True) -> None:
        self._weights = weights
        self._known: set[int] = set()
        self._kinds: list[tuple[nn.Module, type]] = []
        self._contents: list[tuple[Any, Any]] = []
        self._tensors: list[tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]] = []
        for module in model.modules():
            self._kinds.append((module, type(module)))
            self._take(module.__dict__)

    def restore(self) -> None:
        """Make all of it as it was."""
        for module, kind in self._kinds:
            if type(module) is not kind:
                module.__class__ = kind
        for holder, content in self._contents:
            if isinstance(holder, list):
                holder[:] = content
            elif not isinstance(holder, set) or holder != content:  # a set that is filled again has another order
                holder.clear()
                holder.update(content)
        with torch.no_grad():
            for tensor, data, values, grad, grad_values in self._tensors:
                if tensor.data_ptr() != data.data_ptr() or tensor.shape != data.shape:
                    tensor.data = data
                if values is not None and not _same(data, values):
                    data.copy_(values)
                if tensor.is_leaf and tensor.grad is not grad:
                    tensor.grad = grad
                if grad is not None and grad_values is not None and not _same(grad, grad_values):
                    grad.copy_(grad_values)

    def _take(self, value: Any) -> None:
        if id(value) in self._known:
            return
        self._known.add(id(value))
        if isinstance(value, Tensor):
            self._take_tensor(value)
        elif isinstance(value, dict | list | set):
            self._contents.append((value, value.copy()))
            for item in value.values() if isinstance(value, dict) else value:
                self._take(item)
        elif isinstance(value, tuple | frozenset):
            for item in value:
                self._take(item)
        elif not isinstance(value, nn.Module | type) and hasattr(value, "__dict__") and _is_foreign(value):
            self._take(value.__dict__)

    def _take_tensor(self, tensor: Tensor) -> None:
        if tensor.device.type == "meta" or torch.nn.parameter.is_lazy(tensor) or hasattr(tensor, "to_local"):
            return
        grad = tensor.grad if tensor.is_leaf else None
        copied = self._weights or not isinstance(tensor, nn.Parameter)
        values, grad_values = (t.detach().clone() if copied and t is not None else None for t in (tensor, grad))
        self._tensors.append((tensor, tensor.detach(), values, grad, grad_values))


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _is_foreign(value: Any) -> bool:
    return not callable(value) and type(value).__module__.partition(".")[0] not in LIBRARIES
