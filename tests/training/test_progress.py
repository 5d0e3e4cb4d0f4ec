"""How long a fit is: known to the step where it can be, and techniques that it leaves unfinished fail at its end."""

import math

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LearningRateFinder
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lighten import Prune, Quantize, UserError
from lighten.quantization.activation_quantizers import Stage, quantizers_of
from lighten.training.progress import Position, fit_position, fit_steps
from lighten.utils.compression import record_of

LABELS = torch.arange(40) % 3
INPUTS = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) + LABELS.view(-1, 1)
TEN = DataLoader(TensorDataset(INPUTS, LABELS), batch_size=4)


class Unsized(IterableDataset):
    def __iter__(self):
        return iter(zip(INPUTS, LABELS, strict=True))


ENDLESS = DataLoader(Unsized(), batch_size=4)


class Plain(L.LightningModule):
    def __init__(self, lr=1e-2):
        super().__init__()
        self.net, self.lr = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 3)), lr

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


class ByHand(Plain):
    """Two optimizers, each of which steps after so many batches."""

    def __init__(self, every=1):
        super().__init__()
        self.automatic_optimization, self.every = False, every

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            self.manual_backward(super().training_step(batch, batch_idx) / self.every)
            if (batch_idx + 1) % self.every == 0:
                optimizer.step()
                optimizer.zero_grad()

    def configure_optimizers(self):
        return [torch.optim.Adam(self.parameters(), 1e-3) for _ in range(2)]


class Trace(L.Callback):
    """Keeps at each batch what is known, and how far the techniques are."""

    def __init__(self):
        self.positions, self.rows = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.positions.append(fit_position(trainer))
        prune = next((c for c in trainer.callbacks if isinstance(c, Prune)), None)
        on = record_of(pl_module).quantization is not None and quantizers_of(pl_module).stage == Stage.ON
        self.rows.append((0.0 if prune is None else prune.plan.sparsity, on))


def fit(module, data, *callbacks, **settings):
    given = {"max_epochs": 6, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    trace = Trace()
    trainer = L.Trainer(**{**given, **quiet, **settings}, callbacks=[*callbacks, trace])
    trainer.fit(module, data)
    return trainer, trace


SCHEDULES = [{0: 1}, {0: 1, 2: 4}, {0: 4, 2: 1}, {0: 3}]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_steps_are_known_beforehand_with_accumulation_that_changes(schedule):
    trainer, trace = fit(Plain(), TEN, GradientAccumulationScheduler(dict(schedule)))
    steps = sum(
        math.ceil(10 / max((e, n) for e, n in {0: 1, **schedule}.items() if e <= epoch)[1]) for epoch in range(6)
    )
    assert trainer.global_step == steps
    assert {position.total for position in trace.positions} == {steps}
    assert trace.positions[-1] == Position(steps, steps)


LIMITS = [
    ({"limit_train_batches": 3}, 18), ({"limit_train_batches": 0.5}, 30), ({"max_steps": 25}, 25),
    ({"max_steps": 25, "max_epochs": -1}, 25), ({"accumulate_grad_batches": 4}, 18), ({"overfit_batches": 2}, 12),
    ({"val_check_interval": 0.5}, 60), ({"fast_dev_run": 2}, 2),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:You requested to overfit")
@pytest.mark.parametrize(("settings", "steps"), LIMITS, ids=str)
def test_steps_are_known_beforehand_under_every_limit(settings, steps):
    trainer, trace = fit(Plain(), TEN, **settings)
    assert trainer.global_step == steps
    assert {position.total for position in trace.positions} == {steps}


def test_a_loader_that_is_reloaded_longer_counts_from_there():
    class Growing(Plain):
        def train_dataloader(self):
            count = 12 if self.trainer.current_epoch < 1 else 24
            return DataLoader(TensorDataset(INPUTS[:count], LABELS[:count]), batch_size=4)

    trainer, trace = fit(Growing(), None, reload_dataloaders_every_n_epochs=1, max_epochs=3)
    assert trainer.global_step == 3 + 6 + 6
    assert [p.total for p in trace.positions] == [9] * 3 + [15] * 12


@pytest.mark.parametrize(("every", "settings"), [(1, {}), (4, {}), (1, {"max_steps": 60}), (2, {"max_steps": 50})])
def test_shares_hold_with_optimizers_that_are_stepped_by_hand(every, settings):
    prune, quantize = Prune(0.5, begin=0.1, end=0.6, schedule="linear"), Quantize(begin=0.7)
    _, trace = fit(ByHand(every), TEN, prune, quantize, **settings)
    count = len(trace.rows)
    full = next(i for i, (sparsity, _) in enumerate(trace.rows) if sparsity == 0.5)
    begun = next(i for i, (_, on) in enumerate(trace.rows) if on)
    assert trace.rows[int(0.1 * count) - every - 1][0] == 0.0
    assert full / count == pytest.approx(0.6, abs=0.12)
    assert begun / count == pytest.approx(0.7, abs=0.07)
    assert [s for s, _ in trace.rows] == sorted(s for s, _ in trace.rows)


def test_the_length_of_a_loader_that_has_none_is_learned_in_the_first_epoch():
    prune = Prune(0.5, begin=0.1, end=0.6)
    _, trace = fit(Plain(), ENDLESS, prune, Quantize(begin=0.5), max_epochs=4)
    assert [p.total for p in trace.positions] == [math.inf] * 10 + [40] * 30
    assert trace.rows[9] == (0.0, False)
    assert trace.rows[23][0] == 0.5
    assert [on for _, on in trace.rows].index(True) == 20


def test_a_fit_without_an_end_that_can_be_counted_is_one_line():
    with pytest.raises(UserError, match=r"no length and the fit one epoch.*set max_steps"):
        fit(Plain(), ENDLESS, Prune(0.5), max_epochs=1)
    with pytest.raises(
        UserError, match=r"no end that can be counted .*set max_epochs or max_steps, also beside max_time"
    ):
        fit(Plain(), TEN, Quantize(), max_epochs=-1, max_time="00:00:00:01")
    _, trace = fit(Plain(), ENDLESS, Prune(0.5), Quantize(), max_steps=15, max_epochs=-1)
    assert trace.rows[-1] == (0.5, True)


def test_steps_of_a_loader_without_length_cannot_be_asked_for():
    class Scheduled(Plain):
        def configure_optimizers(self):
            fit_steps(self.trainer)

    with pytest.raises(UserError, match="the data loader has no length, so nobody knows how many steps"):
        fit(Scheduled(), ENDLESS)


def test_a_fit_that_was_merely_tried_quantizes_from_its_first_step():
    _, trace = fit(Plain(), TEN, Prune(0.5), Quantize(), fast_dev_run=True)
    assert trace.rows == [(0.5, True)]


def test_a_finder_of_learning_rates_leaves_the_fit_as_long_as_it_is(tmp_path):
    finder = LearningRateFinder(num_training_steps=5, early_stop_threshold=None, update_attr=False)
    prune = Prune(0.5, begin=0.1, end=0.6)
    trainer, trace = fit(Plain(), TEN, finder, prune, Quantize(begin=0.5), default_root_dir=tmp_path)
    assert trainer.global_step == 60
    assert {p.total for p in trace.positions} == {60}
    assert trace.rows[35][0] == 0.5
    assert [on for _, on in trace.rows].index(True) == 30


def test_a_second_fit_of_the_same_callbacks_begins_again():
    prune, quantize = Prune(0.5, begin=0.1, end=0.6), Quantize(begin=0.5)
    for _ in range(2):
        _, trace = fit(Plain(), TEN, prune, quantize)
        assert trace.rows[0] == (0.0, False)
        assert [on for _, on in trace.rows].index(True) == 30
        assert trace.rows[35][0] == 0.5


def test_pruning_a_fit_that_goes_on_from_a_dense_checkpoint_ramps_over_what_is_left(tmp_path):
    dense, _ = fit(Plain(), TEN, max_epochs=3)
    dense.save_checkpoint(tmp_path / "dense.ckpt")
    trace, prune = Trace(), Prune(0.5, begin=0.2, end=0.6)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=6, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[prune, trace],
    )  # fmt: skip
    trainer.fit(Plain(), TEN, ckpt_path=tmp_path / "dense.ckpt", weights_only=True)
    assert len(trace.rows) == 30
    assert trace.rows[5][0] == 0.0
    assert 0.0 < trace.rows[8][0] < 0.5
    assert trace.rows[17][0] == 0.5
