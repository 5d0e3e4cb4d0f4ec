import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from torch import nn

from lighten.errors import UserError
from lighten.training.checkpoint import AtomicCheckpointIO, latest_good
from lighten.training.finite import first_non_finite


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


def test_weights_spoilt_by_a_gradient_are_not_saved(tmp_path, plain, batches, trainer) -> None:
    """The last step of the second epoch: no later loss would tell."""
    with pytest.raises(UserError, match=r"net\.0\.weight is no longer finite at step 6"):
        trainer().fit(plain(bad_gradient_at=5), batches, batches)
    (path,) = (tmp_path / "checkpoints").glob("last*.ckpt")
    weights = AtomicCheckpointIO().load_checkpoint(path)["state_dict"].values()
    assert all(torch.isfinite(w).all() for w in weights if w.is_floating_point())


def test_ranges_not_yet_seen_may_be_infinite_and_statistics_may_not() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.register_buffer("minimum", torch.tensor(float("inf")))
    assert first_non_finite(model) is None
    model[1].running_var[1] = float("nan")
    assert first_non_finite(model) == "1.running_var"
