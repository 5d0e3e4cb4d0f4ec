"""Techniques see a state dict before a LightningModule takes it, whichever way it comes in."""

import lightning as L
import pytest
import torch
from torch import nn

from lighten.training import loading


class Own(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 2)


@pytest.fixture
def seen(monkeypatch):
    seen = []

    def prepare(module, state_dict):
        seen.append((module, sorted(state_dict)))
        return {name: value for name, value in state_dict.items() if name != "extra"}

    monkeypatch.setattr(loading, "_PREPARATIONS", [*loading._PREPARATIONS])
    loading.before_loading(prepare)
    return seen


@pytest.mark.parametrize("strict", [True, False])
def test_load_state_dict_and_load_from_checkpoint_pass_by(seen, strict, tmp_path):
    module, state = Own(), {"net.weight": torch.ones(2, 2), "net.bias": torch.ones(2), "extra": torch.ones(1)}
    module.load_state_dict(state, strict=strict)
    assert seen == [(module, ["extra", "net.bias", "net.weight"])]
    assert module.net.weight.eq(1).all()

    torch.save({"state_dict": state, "pytorch-lightning_version": L.__version__}, tmp_path / "a.ckpt")
    read = Own.load_from_checkpoint(tmp_path / "a.ckpt", strict=strict, weights_only=True)
    assert seen[1][0] is read
    assert read.net.bias.eq(1).all()


def test_plain_modules_are_left_to_pytorch(seen):
    module = nn.Linear(2, 2)
    module.load_state_dict(module.state_dict())
    assert not seen
