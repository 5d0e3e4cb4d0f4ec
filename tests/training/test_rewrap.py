from types import SimpleNamespace

import pytest
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState

from lighten.errors import UserError
from lighten.training.rewrap import prepare_rewrap, rewrap_


def test_a_hook_that_keeps_errors_of_gradients_is_refused():
    state = PowerSGDState.__new__(PowerSGDState)
    strategy = DDPStrategy(ddp_comm_state=state)
    with pytest.raises(UserError, match="the communication hook of PowerSGD keeps errors of gradients"):
        prepare_rewrap(SimpleNamespace(strategy=strategy), print)


def test_what_is_not_wrapped_stays_as_it_is():
    strategy = SingleDeviceStrategy()
    strategy.connect(model := nn.Linear(2, 2))
    rewrap_(SimpleNamespace(strategy=strategy))
    assert strategy.model is model


def test_states_that_a_strategy_hands_out_are_completed_once():
    strategy = SingleDeviceStrategy()
    strategy.connect(model := nn.Linear(2, 2))
    strategy._lightning_module = model
    for _ in range(2):
        prepare_rewrap(SimpleNamespace(strategy=strategy), lambda module, state: state.setdefault("more", []).append(1))
    assert strategy.lightning_module_state_dict()["more"] == [1]
    assert "more" not in model.state_dict()
