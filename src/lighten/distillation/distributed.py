"""Models and batches on several devices: synchronised batch norm, sharding, rows of all ranks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lighten.distillation.match import blocks
from lighten.distillation.terms import CrossRank
from lighten.errors import UserError


def check_sync(trainer: Any) -> None:
    """Raise ``UserError`` where batch norm is to be synchronised over processes on the CPU: torch has no way to."""
    strategy = trainer.strategy
    on_cpu = strategy.root_device.type == "cpu"
    if on_cpu and trainer.world_size > 1 and getattr(strategy, "_layer_sync", None) is not None:
        raise UserError("sync_batchnorm=True: torch synchronises batch norm between GPUs alone; leave it off on CPUs")


def shard_(*models: nn.Module, **settings: Any) -> None:
    """Shard models over a mesh of devices (FSDP2), block by block, unless an earlier fit did it.

    Weights that are laid channels last are laid channels first before.

    Args:
        models: sharded in place.
        settings: of ``torch.distributed.fsdp.fully_shard``.
    """
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    for model in models:
        if any(isinstance(p, DTensor) for p in model.parameters()):
            continue
        for parameter in model.parameters():  # fully_shard takes nothing else, and recipes lay channels last
            parameter.data = parameter.data.contiguous()
        for name in blocks(model):
            fully_shard(model.get_submodule(name), **settings)
        fully_shard(model, **settings)


def cross_rank(module: Any) -> CrossRank:
    """Return what the losses of a module need of the other ranks; nothing where there is one."""
    if module.trainer.world_size == 1:
        return CrossRank()
    return CrossRank(
        gather=partial(gather_rows, all_gather=module.all_gather),
        mean=lambda x: module.trainer.strategy.reduce(x, reduce_op="mean"),
    )


def gather_rows(rows: Tensor, all_gather: Callable[..., Any]) -> Tensor:
    """Return all ranks' rows in one tensor, such that gradients flow back to each.

    Args:
        rows: (batch, …) of this rank.
        all_gather: as a LightningModule has it.

    Raises:
        UserError: if ranks hold different numbers of rows.
    """
    sizes = all_gather(torch.tensor(len(rows), device=rows.device)).flatten().tolist()
    if len(set(sizes)) > 1:
        raise UserError(
            f"dist couples the samples of all ranks, and they hold {sizes}; give each rank "
            "batches of one size (drop_last)"
        )
    return all_gather(rows, sync_grads=rows.requires_grad).flatten(0, 1)
