"""An example input for surgery, taken from the fit's own data before the first step."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lighten.batch import BatchFormat, Parts
from lighten.errors import UserError
from lighten.example import Call, as_call, capture_call, map_tensors


def example_call(trainer: L.Trainer, pl_module: L.LightningModule, target: nn.Module, *, samples: int = 2) -> Call:
    """Return arguments with which ``target`` can be run, on the CPU or wherever the module is.

    Runs in ``setup``. Takes ``pl_module.example_input_array`` where it is set, else the first batch of the stage's
    data loader, cut to ``samples``; ``target``'s own arguments are caught while ``pl_module`` runs on it.

    Raises:
        UserError: if there is neither, or ``pl_module.forward`` cannot be run on it, or does not reach ``target``.
    """
    array = pl_module.example_input_array
    given = (as_call(array) for _ in range(1)) if array is not None else _batches(trainer, pl_module, samples)
    return next(_captured(pl_module, target, given))


def example_calls(
    trainer: L.Trainer, pl_module: L.LightningModule, target: nn.Module, *, samples: int = 128
) -> list[Call]:
    """Return arguments of ``target`` for the first ``samples`` samples of the stage's data, batch by batch.

    Raises:
        UserError: as :func:`example_call`.
    """
    return list(_captured(pl_module, target, _batches(trainer, pl_module, samples)))


def _captured(pl_module: L.LightningModule, target: nn.Module, given: Iterator[Call]) -> Iterator[Call]:
    device = next((p.device for p in pl_module.parameters()), torch.device("cpu"))
    try:
        for call in given:
            yield capture_call(pl_module, target, map_tensors(lambda t: t.to(device), call))
    except UserError:
        raise
    except Exception as error:  # whatever a user's data and forward raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{type(pl_module).__name__}.forward could not be run on the first batch to look at "
            f"{type(target).__name__} ({reason}); set example_input_array on the module"
        ) from error


def _batches(trainer: L.Trainer, pl_module: L.LightningModule, samples: int) -> Iterator[Call]:
    """Yield the first batches, cut so that they hold ``samples`` in all."""
    loop = {
        "fit": trainer.fit_loop,
        "validate": trainer.validate_loop,
        "test": trainer.test_loop,
        "predict": trainer.predict_loop,
    }[str(trainer.state.fn.value)]  # type: ignore[union-attr]
    loader: Any = loop._data_source.dataloader()  # type: ignore[attr-defined]
    while isinstance(loader, list | tuple | dict):
        loader = next(iter(loader.values() if isinstance(loader, dict) else loader))
    with torch.random.fork_rng():
        batches = iter(loader)
        batch = next(batches, None)
        if batch is None:
            raise UserError("the data loader is empty; give it at least one batch")
        while batch is not None and samples > 0:
            call, size = _cut(batch, samples, pl_module)
            yield call
            samples -= size
            batch = next(batches, None) if samples > 0 else None


def _cut(batch: Any, samples: int, pl_module: L.LightningModule) -> tuple[Call, int]:
    """Return the call of a batch with ``samples`` samples at most, and how many it had."""
    parts = _parts(batch, pl_module)
    call, labels = parts.call, parts.labels
    size = len(labels) if isinstance(labels, Tensor) and labels.ndim else None
    cut = map_tensors(lambda t: t[:samples] if size is None or (t.ndim and len(t) == size) else t, call)
    known = [len(t) for t in tree_leaves(call) if isinstance(t, Tensor) and t.ndim]
    return cut, size or max(known, default=samples)


def _parts(batch: Any, pl_module: L.LightningModule) -> Parts:
    """Return the parts of a batch as the module names them; of others' modules the first part is its input."""
    named = getattr(pl_module, "batch_format", None)
    if named is None and isinstance(batch, list | tuple) and len(batch) > 2:
        named = BatchFormat(("input", "label", *["ignore"] * (len(batch) - 2)))
    return (named or BatchFormat()).split(batch)
