from contextlib import nullcontext

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lighten import Quantize
from lighten.errors import UserError
from lighten.training.checkpoint import AtomicCheckpointIO, latest_good
from lighten.training.finite import StopOnNonFinite, _bad_gradient, first_non_finite
from lighten.training.record import read


def test_a_nan_loss_stops_before_anything_is_saved(tmp_path, plain, batches, trainer) -> None:
    module = plain(bad_loss_at=2)
    rescue = ModelCheckpoint(tmp_path / "rescue", save_on_exception=True, save_last=True)
    with pytest.raises(UserError, match=r"the loss is nan at step 2 \(epoch 0\).*optimizer.lr") as caught:
        trainer(callbacks=[rescue]).fit(module, batches, batches)
    assert "\n" not in str(caught.value)
    assert caught.value.__context__ is None, "a saver was asked all the same"
    assert not list(tmp_path.rglob("*.ckpt*"))
    assert first_non_finite(module) is None, "the step was taken"


def test_earlier_checkpoints_are_kept(tmp_path, plain, batches, trainer) -> None:
    with pytest.raises(UserError, match="at step 4"):
        trainer().fit(plain(bad_loss_at=4), batches, batches)
    assert latest_good(tmp_path / "checkpoints").name == "last-epoch=000-step=0000003.ckpt"


@pytest.mark.filterwarnings("ignore:.{0,2}fit.ckpt_path=")
def test_a_saver_that_cannot_be_switched_off_writes_nothing_either(tmp_path, plain, batches, trainer) -> None:
    rescue = OnExceptionCheckpoint(tmp_path / "rescue")
    with pytest.raises(UserError, match="the loss is nan at step 2"):
        trainer(callbacks=[rescue]).fit(plain(bad_loss_at=2), batches, batches)
    assert not list(tmp_path.rglob("*.ckpt*"))


def test_a_bad_gradient_stops_before_it_changes_the_weights(tmp_path, plain, batches, trainer) -> None:
    """The last step of the second epoch: no later loss would tell. The clipping after it would hide an infinity."""
    module = plain(bad_gradient_at=5)
    says = r"the gradient of net\.0\.weight is (nan|inf) at step 5 \(epoch 1\); lower optimizer\.lr"
    with pytest.raises(UserError, match=says):
        trainer(gradient_clip_val=1.0).fit(module, batches, batches)
    assert first_non_finite(module) is None
    (path,) = (tmp_path / "checkpoints").glob("last*.ckpt")
    assert "step=0000003" in path.name


def test_one_bad_entry_of_one_gradient_is_enough(plain, batches, trainer) -> None:
    class OneEntry(plain):
        def on_after_backward(self):
            if self.global_step == 1:
                self.net[3].bias.grad[1] = float("nan")

    with pytest.raises(UserError, match=r"the gradient of net\.3\.bias is nan at step 1"):
        trainer().fit(OneEntry(), batches, batches)


def test_gradients_that_are_huge_and_finite_pass(plain, batches, trainer) -> None:
    class Huge(plain):
        def on_after_backward(self):
            self.net[3].bias.grad.fill_(1e30)  # its square overflows

    trainer(max_epochs=1).fit(Huge(), batches, batches)


def test_weights_spoilt_behind_its_back_are_not_saved(tmp_path, plain, batches, trainer) -> None:
    class Spoilt(plain):
        def on_train_batch_end(self, *_):
            if self.global_step == 6:
                self.net[0].weight.data[0, 0] = float("inf")

    with pytest.raises(UserError, match=r"net\.0\.weight is no longer finite at step 6"):
        trainer().fit(Spoilt(), batches, batches)
    (path,) = (tmp_path / "checkpoints").glob("last*.ckpt")
    weights = AtomicCheckpointIO().load_checkpoint(path)["state_dict"].values()
    assert all(torch.isfinite(w).all() for w in weights if w.is_floating_point())


def scaled(trainer, **settings):
    """A trainer in float16 with a loss scaler, which also CPUs have."""
    scaler = torch.amp.GradScaler("cpu", **settings)
    fit = trainer(max_epochs=8)
    fit.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", scaler)
    return fit, scaler


def test_an_overflow_is_the_loss_scalers_as_long_as_it_can_help(plain, batches, trainer) -> None:
    fit, scaler = scaled(trainer, init_scale=65536.0)
    fit.fit(plain(bad_gradient_at=3), batches, batches)
    assert 1.0 < scaler.get_scale() < 65536.0


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")
def test_an_overflow_at_every_scale_stops(plain, batches, trainer) -> None:
    class Bad(plain):
        def training_step(self, batch, batch_idx):
            self.bad_gradient_at = self.global_step
            return super().training_step(batch, batch_idx)

    fit, _ = scaled(trainer, init_scale=4.0)
    with pytest.raises(UserError, match=r"the gradient of net\.0\.weight is nan at step 3"):
        fit.fit(Bad(), batches, batches)


@pytest.mark.filterwarnings("ignore:.*training_step. returned .None.")
@pytest.mark.parametrize("bad", ["bad_loss_at", "bad_gradient_at"])
def test_a_skipped_batch_leaves_no_trace(tmp_path, plain, batches, trainer, bad) -> None:
    """The second of three batches is skipped: what follows is as if it had not been there."""

    class NoSecond(plain):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    class Spoils(plain):
        def on_after_backward(self):
            if self.global_step == 1:
                self.net[1].running_mean.fill_(float("nan"))

    def state_after(module, folder):
        fit = trainer(folder, max_epochs=1, on_bad_batch="skip")
        fit.fit(module, batches, batches)
        moments = fit.optimizers[0].state_dict()["state"].values()
        return [*module.state_dict().values(), *(value for state in moments for value in state.values())]

    with pytest.warns(match="1 of 3 steps were skipped, as they were not finite; the first: the .* at step 1"):
        skipped = state_after(Spoils(**{bad: 1}), tmp_path / "skipped")
    missed = state_after(NoSecond(), tmp_path / "missed")
    assert len(skipped) == len(missed)
    assert all(torch.equal(a, b) for a, b in zip(skipped, missed, strict=True))
    lines = read(tmp_path / "skipped" / "history.jsonl")
    assert [line["train/skipped"] for line in lines if "train/skipped" in line] == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.filterwarnings("ignore:1 of 3 steps were skipped")
def test_a_skipped_batch_is_not_in_the_ranges_either(plain, batches, trainer, at) -> None:
    """Whether it is the first that is looked at, or a later one."""
    inputs = torch.randn(12, 5, generator=torch.Generator().manual_seed(2))
    inputs[4 * at] = float("nan")
    module = plain()
    quantize = Quantize(begin=0.1, freeze=0.9)
    fit = trainer(callbacks=[quantize], on_bad_batch="skip", max_epochs=1)
    fit.fit(module, DataLoader(TensorDataset(inputs, torch.arange(12) % 2), 4), batches)
    ranges = [value for name, value in module.state_dict().items() if name.endswith((".low", ".high"))]
    assert ranges
    assert all(torch.isfinite(value).all() for value in ranges)


def test_ten_skips_in_a_row_are_no_accident(plain, batches, trainer) -> None:
    class Bad(plain):
        def training_step(self, batch, batch_idx):
            self.bad_loss_at = self.global_step if self.global_step > 0 else None
            return super().training_step(batch, batch_idx)

    with pytest.raises(UserError, match=r"the loss is nan at step 11 .* in the 10 steps before, which were skipped"):
        trainer(max_epochs=9, on_bad_batch="skip").fit(Bad(), batches, batches)


def test_skips_are_counted_on_after_a_resume(tmp_path, plain, batches, trainer) -> None:
    with pytest.warns(match="1 of 3 steps were skipped"):
        trainer(max_epochs=1, on_bad_batch="skip").fit(plain(bad_loss_at=1), batches, batches)
    fit = trainer(max_epochs=2, on_bad_batch="skip")
    with pytest.warns(match="2 of 6 steps were skipped, .* the first: the loss is nan at step 1"):
        fit.fit(plain(bad_loss_at=4), batches, batches, ckpt_path=latest_good(tmp_path / "checkpoints"))


def test_what_may_be_done_is_one_of_two() -> None:
    with pytest.raises(UserError, match="on_bad_batch='ignore': Choices: skip, stop"):
        StopOnNonFinite("ignore")


def test_ranges_not_yet_seen_may_be_infinite_and_statistics_may_not() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.register_buffer("minimum", torch.tensor(float("inf")))
    assert first_non_finite(model) is None
    model[1].running_var[1] = float("nan")
    assert first_non_finite(model) == "1.running_var"


def test_a_second_fit_counts_from_zero(plain, batches) -> None:
    stop = StopOnNonFinite("skip")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    for bad, skipped in ((1, 1), (None, 0)):
        fit = L.Trainer(max_steps=2, limit_val_batches=0, enable_model_summary=False, callbacks=[stop], **quiet)
        with pytest.warns(UserWarning, match="1 of 2 steps were skipped") if skipped else nullcontext():
            fit.fit(plain(bad_loss_at=bad), batches, batches)
        assert stop.skipped == skipped


def test_gradients_of_sparse_embeddings_are_looked_at() -> None:
    table = nn.Embedding(4, 3, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), 0.1)
    table(torch.tensor([1, 1, 2])).sum().backward()
    assert _bad_gradient(table, optimizer) is None
    (table(torch.tensor([1])) * float("inf")).sum().backward()
    assert _bad_gradient(table, optimizer)[0].startswith("the gradient of weight is")
