import lightning as L
import pytest
import torch

from lighten.errors import UserError
from lighten.training.checkpoint import latest_good
from lighten.training.snapshot import Snapshot


@pytest.fixture
def snapshot(tmp_path):
    def build(at: float, calls: list[int], module=None) -> Snapshot:
        def save(pl_module, path) -> None:
            calls.append(pl_module.global_step)
            torch.save(pl_module.state_dict(), path)

        return Snapshot(tmp_path / "dense" / "weights", save, at=at)

    return build


@pytest.mark.parametrize(("at", "step"), [(0.0, 0), (0.3, 2), (0.5, 3), (1.0, 6)])
def test_it_saves_once_before_the_step_that_follows(tmp_path, plain, batches, trainer, snapshot, at, step) -> None:
    module, calls, seen = plain(), [], []

    def remember(*args) -> None:
        seen.append({name: value.clone() for name, value in module.state_dict().items()})

    module.on_train_batch_start = remember
    module.on_train_end = remember
    trainer(callbacks=[snapshot(at, calls)]).fit(module, batches, batches)
    assert calls == [step]
    saved = torch.load(tmp_path / "dense" / "weights", weights_only=True)
    assert all(torch.equal(saved[name], seen[step][name]) for name in saved)
    assert [path.name for path in (tmp_path / "dense").iterdir()] == ["weights"]


def test_it_comes_before_a_change_that_falls_on_the_same_step(tmp_path, plain, batches, trainer, snapshot) -> None:
    class Change(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_) -> None:
            if trainer.global_step == 3:
                for parameter in pl_module.parameters():
                    parameter.data.zero_()

    module = plain()
    trainer(callbacks=[snapshot(0.5, []), Change()]).fit(module, batches, batches)
    saved = torch.load(tmp_path / "dense" / "weights", weights_only=True)
    assert all(bool(saved[name].any()) for name, _ in module.named_parameters())


def test_what_is_there_is_left_alone(tmp_path, plain, batches, trainer, snapshot) -> None:
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "weights").write_text("mine")
    calls: list[int] = []
    trainer(callbacks=[snapshot(0.0, calls)]).fit(plain(), batches, batches)
    assert calls == []
    assert (tmp_path / "dense" / "weights").read_text() == "mine"


def test_a_resumed_fit_does_not_save_a_later_state(tmp_path, plain, batches, trainer, snapshot) -> None:
    trainer(max_epochs=2).fit(plain(), batches, batches)
    calls: list[int] = []
    fit = trainer(max_epochs=3, callbacks=[snapshot(0.1, calls)])
    with pytest.warns(UserWarning, match=r"weights is missing and was due at 10% of the fit"):
        fit.fit(plain(), batches, batches, ckpt_path=latest_good(tmp_path / "checkpoints"))
    assert calls == []


def test_a_moment_outside_the_fit_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r"at=1\.1"):
        Snapshot(tmp_path, lambda module, path: None, at=1.1)
