import copy
import os
import select
import signal
import subprocess
import sys

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lighten.errors import UserError
from lighten.training import order as order_module
from lighten.training.order import DataOrder, OrderedLoader, bucket_order, draw, draw_below, epoch_order

MASK = 2**64 - 1
lightning_noise = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.isinstance.treespec")


def splitmix_reference(seed, stream, epoch, sample):
    """SplitMix64's output function in Python integers, over the same coordinates."""
    bits = 0
    for coordinate in (seed, stream, epoch, sample):
        bits = (bits + coordinate + 0x9E3779B97F4A7C15) & MASK
        bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & MASK
        bits ^= bits >> 31
    return bits


def test_draw_agrees_with_integer_reference():
    samples = np.array([0, 1, 2, 59_999])
    expected = [splitmix_reference(7, 3, 5, int(i)) for i in samples]
    assert draw(7, 5, samples, stream=3).tolist() == expected


def test_first_draw_is_splitmix64_of_zero():
    """The published first output of SplitMix64 seeded with 0."""
    assert splitmix_reference(0, 0, 0, 0) != 0
    assert int(order_module._mix(np.array([0x9E3779B97F4A7C15], np.uint64))[0]) == 0xE220A8397B1DCDAF


def test_streams_of_one_sample_side_by_side():
    streams = np.arange(5)
    many = draw(7, np.array([[1], [2]]), np.array([[3], [4]]), stream=streams)
    assert many.tolist() == [[splitmix_reference(7, s, e, i) for s in range(5)] for e, i in ((1, 3), (2, 4))]


def test_draw_below_is_uniform_and_its_streams_independent():
    samples = np.arange(50_000)
    a, b = (draw_below(5, 0, 1, samples, stream=s) for s in (1, 2))
    table = np.histogram2d(a, b, bins=5)[0]
    chi_square = ((table - 2000) ** 2 / 2000).sum()
    assert set(a.tolist()) == set(range(5))
    assert chi_square < 51.2  # 24 degrees of freedom, p = 0.001


def test_epochs_are_permutations_that_differ():
    a, b, c = epoch_order(1000, seed=0, epoch=0), epoch_order(1000, seed=0, epoch=1), epoch_order(1000, seed=1, epoch=0)
    for order in (a, b, c):
        assert sorted(order.tolist()) == list(range(1000))
    assert (a == b).sum() < 20
    assert (a == c).sum() < 20


@pytest.mark.parametrize(("samples", "world"), [(10, 1), (10, 2), (11, 4), (3, 4)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_shares_are_equal_and_cover_the_epoch(monkeypatch, samples, world, shuffle):
    monkeypatch.setattr(order_module, "world_size", lambda: world)
    shares = []
    for rank in range(world):
        monkeypatch.setattr(order_module, "_rank", lambda rank=rank: rank)
        sampler = DataOrder(samples, seed=3, shuffle=shuffle)
        sampler.set_epoch(2)
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler) == -(-samples // world)
    together = [place for row in zip(*shares, strict=True) for place in row]
    expected = epoch_order(samples, seed=3, epoch=2).tolist() if shuffle else list(range(samples))
    assert together[:samples] == [(2, i) for i in expected]
    assert together[samples:] == together[: len(together) - samples]


class Squares:
    """Sample i of epoch e is the pair (e, i), so that a batch tells what was asked for."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return self.samples

    def __getitems__(self, places):
        epochs, samples = map(torch.tensor, zip(*places, strict=True))
        return torch.stack([epochs, samples], 1).float(), samples % 3


def seen(loader):
    return [tuple(row) for inputs, _ in loader for row in inputs.int().tolist()]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_sees_every_sample_once(workers):
    loader = OrderedLoader(Squares(40), batch_size=8, seed=1, workers=workers)
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        assert seen(loader) == [(epoch, i) for i in epoch_order(40, seed=1, epoch=epoch)]


def test_iterating_again_starts_again():
    loader = OrderedLoader(Squares(16), batch_size=8, seed=1)
    assert seen(loader) == seen(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_state_resumes_after_the_batches_that_were_handed_out(workers):
    loader = OrderedLoader(Squares(40), batch_size=8, seed=1, workers=workers)
    loader.sampler.set_epoch(4)
    batches = iter(loader)
    first = [next(batches) for _ in range(2)]
    state = copy.deepcopy(loader.state_dict())
    rest = list(batches)

    again = OrderedLoader(Squares(40), batch_size=8, seed=1, workers=workers)
    again.load_state_dict(state)
    again.sampler.set_epoch(4)
    resumed = list(again)
    assert len(first) + len(resumed) == len(again) == 5
    assert all(torch.equal(a[0], b[0]) for a, b in zip(rest, resumed, strict=True))
    assert len(list(again)) == 5


def test_state_of_an_epoch_not_begun_is_its_start():
    loader = OrderedLoader(Squares(16), batch_size=8, seed=1)
    list(loader)
    assert loader.state_dict()["done"] == 16
    loader.sampler.set_epoch(1)
    assert loader.state_dict() == {"seed": 1, "samples": 16, "epoch": 1, "done": 0}


def test_state_moves_to_another_number_of_processes(monkeypatch):
    loader = OrderedLoader(Squares(64), batch_size=8, seed=1)
    batches = iter(loader)
    for _ in range(4):
        next(batches)
    state = loader.state_dict()
    monkeypatch.setattr(order_module, "world_size", lambda: 2)
    left = []
    for rank in range(2):
        monkeypatch.setattr(order_module, "_rank", lambda rank=rank: rank)
        half = OrderedLoader(Squares(64), batch_size=8, seed=1)
        half.load_state_dict(state)
        left += seen(half)
    assert sorted(i for _, i in left) == sorted(epoch_order(64, seed=1, epoch=0)[32:].tolist())


def test_another_order_is_refused():
    state = OrderedLoader(Squares(16), batch_size=8, seed=1).state_dict()
    with pytest.raises(UserError, match="seed=1, this fit has seed=2"):
        OrderedLoader(Squares(16), batch_size=8, seed=2).load_state_dict(state)
    with pytest.raises(UserError, match="samples=16, this fit has samples=17"):
        OrderedLoader(Squares(17), batch_size=8, seed=1).load_state_dict(state)


@pytest.mark.parametrize("batch_size", [0, 17])
def test_less_than_a_batch_is_refused(batch_size):
    with pytest.raises(UserError, match=f"batch_size={batch_size}, expected 1 to 16"):
        OrderedLoader(Squares(16), batch_size=batch_size, seed=0)


def test_a_lone_last_sample_is_dropped():
    loader = OrderedLoader(Squares(17), batch_size=8, seed=0)
    assert [len(labels) for _, labels in loader] == [8, 8]


def test_no_global_random_number_is_drawn():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(OrderedLoader(Squares(16), batch_size=8, seed=0))
    assert torch.equal(before, torch.get_rng_state())


LENGTHS = np.random.default_rng(0).integers(3, 40, 1003)


def bucket_reference(lengths, batch, seed, epoch):
    """The same by lists: pools of batches, sorted by length, the batches visited by the rank of their draw."""
    order = epoch_order(len(lengths), seed=seed, epoch=epoch).tolist()
    full = len(order) // batch
    size = batch * min(50, max(1, full // 4))
    sorted_pools = []
    for start in range(0, full * batch, size):
        pool = order[start : min(start + size, full * batch)]
        sorted_pools += sorted(pool, key=lambda i: lengths[i])
    batches = [sorted_pools[b * batch : (b + 1) * batch] for b in range(full)]
    turns = sorted(range(full), key=lambda b: splitmix_reference(seed, 4, epoch, b))
    return [i for b in turns for i in batches[b]] + order[full * batch :]


@pytest.mark.parametrize(("samples", "batch"), [(1003, 4), (1003, 64), (30, 16), (5, 8)])
def test_bucket_order_agrees_with_a_reference_of_lists(samples, batch):
    order = bucket_order(LENGTHS[:samples], batch, seed=3, epoch=2).tolist()
    assert order == bucket_reference(LENGTHS.tolist()[:samples], batch, 3, 2)
    assert sorted(order) == list(range(samples))


def test_batches_are_of_similar_length_and_come_mixed():
    batches = LENGTHS[bucket_order(LENGTHS, 16, seed=0, epoch=0)[:992]].reshape(-1, 16)
    assert (batches.max(1) - batches.min(1)).mean() < 4
    assert abs(np.corrcoef(batches.mean(1), np.arange(len(batches)))[0, 1]) < 0.25


def test_bucket_orders_differ_between_epochs_and_seeds():
    a, b, c = (bucket_order(LENGTHS, 16, seed=s, epoch=e) for s, e in ((0, 0), (0, 1), (1, 0)))
    groups = [{frozenset(o[i : i + 16].tolist()) for i in range(0, 992, 16)} for o in (a, b, c)]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]


def bucketed(samples=100, batch_size=8, **options):
    return OrderedLoader(Squares(samples), batch_size=batch_size, seed=1, lengths=LENGTHS[:samples], **options)


@pytest.mark.parametrize("samples", [96, 100, 103])
def test_global_buckets_do_not_depend_on_the_number_of_processes(monkeypatch, samples):
    def global_batches(world):
        monkeypatch.setattr(order_module, "world_size", lambda: world)
        shares = []
        for rank in range(world):
            monkeypatch.setattr(order_module, "_rank", lambda rank=rank: rank)
            loader = bucketed(samples, 8 // world)
            loader.sampler.set_epoch(2)
            shares.append([[tuple(row) for row in inputs.int().tolist()] for inputs, _ in loader])
            assert len(shares[-1]) == len(loader) == samples // 8
        return [sorted(place for part in parts for place in part) for parts in zip(*shares, strict=True)]

    alone = global_batches(1)
    assert len({place for batch in alone for place in batch}) == 8 * len(alone)
    assert global_batches(2) == global_batches(4) == alone


@pytest.mark.parametrize("workers", [0, 2])
def test_buckets_resume_after_the_batches_that_were_handed_out(workers):
    loader = bucketed(workers=workers)
    loader.sampler.set_epoch(4)
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    state = copy.deepcopy(loader.state_dict())
    rest = [tuple(row) for inputs, _ in batches for row in inputs.int().tolist()]
    again = bucketed(workers=workers)
    again.load_state_dict(state)
    again.sampler.set_epoch(4)
    assert seen(again) == rest
    again.sampler.set_epoch(5)
    loader.sampler.set_epoch(5)
    assert seen(again) == seen(loader)


@pytest.mark.parametrize(("world", "batch_size"), [(2, 4), (2, 8), (1, 4)])
def test_an_epoch_of_buckets_goes_on_in_its_order_with_other_global_batches(monkeypatch, world, batch_size):
    loader = bucketed(96)
    batches = iter(loader)
    first = [tuple(row) for _ in range(4) for row in next(batches)[0].int().tolist()]
    state = loader.state_dict()
    monkeypatch.setattr(order_module, "world_size", lambda: world)
    rest = []
    for rank in range(world):
        monkeypatch.setattr(order_module, "_rank", lambda rank=rank: rank)
        other = bucketed(96, batch_size)
        other.load_state_dict(state)
        other.sampler.set_epoch(0)
        rest += seen(other)
        assert other.state_dict()["bucket"] == 8
        other.sampler.set_epoch(1)
        assert other.state_dict()["bucket"] == world * batch_size
    assert sorted(first + rest) == [(0, i) for i in range(96)]


def test_sorted_and_unsorted_orders_do_not_mix():
    plain = OrderedLoader(Squares(96), batch_size=8, seed=1)
    with pytest.raises(UserError, match="data order is sorted by length, this fit's is not; resume with the same"):
        plain.load_state_dict(bucketed(96).state_dict())
    with pytest.raises(UserError, match="data order is not sorted by length, this fit's is; resume with the same"):
        bucketed(96).load_state_dict(plain.state_dict())


@pytest.mark.parametrize("batch_size", [0, 9])
def test_less_than_a_batch_of_buckets_is_refused(monkeypatch, batch_size):
    monkeypatch.setattr(order_module, "world_size", lambda: 2)
    with pytest.raises(UserError, match=f"batch_size={batch_size}, expected 1 to 8, the training samples of one"):
        bucketed(17, batch_size)


class Module(L.LightningModule):
    def __init__(self, workers):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
        self.workers = workers
        self.seen = []

    def training_step(self, batch, _):
        inputs, labels = batch
        self.seen += [tuple(row) for row in inputs.int().tolist()]
        return F.cross_entropy(self.net(inputs), labels)

    def train_dataloader(self):
        return OrderedLoader(Squares(48), batch_size=8, seed=9, workers=self.workers)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class SaveEachStep(L.Callback):
    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *_):
        trainer.save_checkpoint(self.path / f"step={trainer.global_step}.ckpt")


def fit(module, path, *, ckpt_path=None, **trainer):
    """Fit for three epochs or as told, with a checkpoint after every step."""
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        callbacks=[SaveEachStep(path)],
        **{"max_epochs": 3} | trainer,
    )
    trainer.fit(module, ckpt_path=ckpt_path)


def assert_same_end(a, b):
    other = b.net.state_dict()
    assert all(torch.equal(value, other[key]) for key, value in a.net.state_dict().items())


@lightning_noise
@pytest.mark.parametrize(("workers", "step"), [(0, 3), (0, 6), (0, 8), (0, 12), (2, 8)])
def test_a_killed_fit_ends_with_the_same_bits(tmp_path, workers, step):
    """Steps 3 and 8 lie inside an epoch of six batches, 6 and 12 at its end."""
    whole, resumed = Module(workers), Module(workers)
    fit(whole, tmp_path)
    fit(resumed, tmp_path / "resumed", ckpt_path=tmp_path / f"step={step}.ckpt")
    assert len(set(whole.seen)) == 3 * 48
    assert resumed.seen == whole.seen[step * 8 :]
    assert_same_end(whole, resumed)


@lightning_noise
@pytest.mark.parametrize(("limit", "steps"), [(1.0, 4), (1.0, 3), (4, 3), (4, 4)])
def test_a_fit_stopped_by_max_steps_goes_on(tmp_path, limit, steps):
    options = {"accumulate_grad_batches": 2, "limit_train_batches": limit}
    whole, first, resumed = Module(0), Module(0), Module(0)
    fit(whole, tmp_path, **options)
    fit(first, tmp_path / "first", max_steps=steps, **options)
    fit(resumed, tmp_path / "resumed", ckpt_path=tmp_path / "first" / f"step={steps}.ckpt", **options)
    assert first.seen + resumed.seen == whole.seen
    assert_same_end(whole, resumed)


ORPHANS = """
import multiprocessing, os, signal, sys
from lighten.training import order

when, tell = sys.argv[1], os.fdopen(int(sys.argv[2]), "w")
begin = order._end_with_parent


def slow_start(worker):
    if when == "before":  # the parent dies while the worker starts
        os.kill(os.getppid(), signal.SIGKILL)
        while os.getppid() == multiprocessing.parent_process().pid:
            pass
    begin(worker)
    if when == "after":
        os.kill(os.getppid(), signal.SIGKILL)


order._end_with_parent = slow_start


class Data:
    def __len__(self):
        return 8

    def __getitems__(self, places):
        return places


for _ in order.OrderedLoader(Data(), batch_size=2, seed=0, workers=1):
    pass
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_workers_end_with_a_parent_that_is_killed(when):
    """The pipe is at its end once nobody has it open: neither the fit nor its worker."""
    reads, writes = os.pipe()
    with subprocess.Popen([sys.executable, "-c", ORPHANS, when, str(writes)], pass_fds=[writes]) as killed:
        os.close(writes)
        assert select.select([reads], [], [], 60)[0], "the worker lives on"
        assert os.read(reads, 1) == b""
    os.close(reads)
    assert killed.returncode == -signal.SIGKILL
