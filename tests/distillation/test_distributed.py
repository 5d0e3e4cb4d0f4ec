"""What several devices add, as far as one process can tell."""

from types import SimpleNamespace

import pytest
import torch

from lighten.distillation.distributed import check_sync, cross_rank, gather_rows
from lighten.errors import UserError


def gathered(sizes):
    """Return an ``all_gather`` of as many ranks, which hold as many rows each."""
    return lambda x, sync_grads=False: torch.tensor(sizes) if x.ndim == 0 else torch.stack([x] * len(sizes))


def test_rows_of_all_ranks_come_in_one_tensor():
    rows = torch.arange(6.0).view(3, 2)
    assert torch.equal(gather_rows(rows, gathered([3, 3])), torch.cat([rows, rows]))


def test_ranks_of_unequal_batches_are_refused():
    with pytest.raises(UserError, match=r"they hold \[3, 2\]; give each rank batches of one size"):
        gather_rows(torch.zeros(3, 2), gathered([3, 2]))


def test_losses_ask_other_ranks_only_where_there_are_some():
    strategy = SimpleNamespace(reduce=lambda x, reduce_op: {"mean": x / 2}[reduce_op])
    rows = torch.arange(6.0).view(3, 2)

    def found(world):
        trainer = SimpleNamespace(world_size=world, strategy=strategy)
        ranks = cross_rank(SimpleNamespace(trainer=trainer, all_gather=gathered([3] * world)))
        return ranks.gather(rows), ranks.mean(torch.tensor(3.0))

    gather, mean = found(world=2)
    assert torch.equal(gather, torch.cat([rows, rows]))
    assert mean == 1.5
    gather, mean = found(world=1)
    assert gather is rows
    assert mean == 3.0


@pytest.mark.parametrize(("device", "world", "sync", "refused"), [
    ("cpu", 2, object(), True), ("cpu", 1, object(), False), ("cpu", 2, None, False), ("cuda", 2, object(), False),
])  # fmt: skip
def test_synchronised_batch_norm_is_refused_between_cpus(device, world, sync, refused):
    strategy = SimpleNamespace(root_device=torch.device(device), _layer_sync=sync)
    trainer = SimpleNamespace(strategy=strategy, world_size=world)
    if not refused:
        check_sync(trainer)
        return
    with pytest.raises(UserError, match="sync_batchnorm=True"):
        check_sync(trainer)
