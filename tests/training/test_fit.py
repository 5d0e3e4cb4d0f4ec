from datetime import timedelta

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lighten.training.checkpoint import AtomicCheckpointIO
from lighten.training.finite import StopOnNonFinite
from lighten.training.fit import make_trainer, resolve_precision
from lighten.training.peers import RankMonitor
from lighten.training.record import History


def test_the_trainer_saves_safely_and_records(tmp_path, trainer) -> None:
    class Mine(Callback):
        pass

    fit = trainer(callbacks=[Mine()])
    assert isinstance(fit.strategy.checkpoint_io, AtomicCheckpointIO)
    assert fit._accelerator_connector.use_distributed_sampler is False
    assert fit.num_sanity_val_steps == 0
    kinds = [type(callback) for callback in fit.callbacks]
    assert {Mine, StopOnNonFinite, History} <= set(kinds)
    assert kinds.index(Mine) < kinds.index(StopOnNonFinite) < kinds.index(History)
    assert all(isinstance(c, ModelCheckpoint) for c in fit.callbacks[-2:])
    assert fit.loggers == []


def test_settings_win(tmp_path) -> None:
    settings = {"enable_checkpointing": False, "num_sanity_val_steps": 1, "accelerator": "cpu", "max_steps": 7}
    fit = make_trainer(folder=tmp_path, stage="teacher", settings={**settings, "enable_progress_bar": False})
    assert fit.checkpoint_callbacks == []
    assert fit.progress_bar_callback is None
    assert (fit.num_sanity_val_steps, fit.max_steps) == (1, 7)


@pytest.mark.parametrize(("settings", "seconds"), [({"timeout": 45.0}, 45), ({}, 1800)])
def test_the_timeout_is_the_strategys(tmp_path, settings, seconds) -> None:
    common = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "enable_progress_bar": False}
    fit = make_trainer(folder=tmp_path, stage="teacher", settings={**common, **settings})
    assert fit.strategy._timeout == timedelta(seconds=seconds)


def test_peers_hear_first(trainer) -> None:
    assert isinstance(trainer().callbacks[0], RankMonitor)


def test_seed_decides_what_dropout_drops(plain, batches, tmp_path) -> None:
    def weights(seed: int, noise: int) -> torch.Tensor:
        torch.manual_seed(noise)
        settings = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "enable_checkpointing": False}
        module = plain()
        make_trainer(folder=tmp_path, stage="s", settings=settings, seed=seed).fit(module, batches, batches)
        return module.net[3].weight

    assert torch.equal(weights(0, noise=1), weights(0, noise=2))
    assert not torch.equal(weights(0, noise=1), weights(1, noise=1))


@pytest.mark.parametrize(
    ("accelerator", "cpu", "cuda", "expected"),
    [
        ("cpu", False, False, "32-true"),
        ("cpu", True, False, "bf16-mixed"),
        ("cpu", False, True, "32-true"),
        ("auto", False, True, "bf16-mixed"),
        ("gpu", True, None, "32-true"),
        ("auto", False, None, "32-true"),
        ("auto", True, False, "bf16-mixed"),
        ("mps", True, False, "32-true"),
    ],
)
def test_auto_precision_is_bfloat16_only_where_it_is_fast(monkeypatch, accelerator, cpu, cuda, expected) -> None:
    """``cuda``: no device, one without bfloat16 (None), or one with it."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: cpu)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not False)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or bool(cuda)
    )
    assert resolve_precision("auto", accelerator) == expected


def test_a_named_precision_is_kept() -> None:
    assert resolve_precision("16-mixed", "cpu") == "16-mixed"
