import pytest
import torch
from torch import nn
from torch.optim import LBFGS, AdamW

from lighten.errors import UserError
from lighten.utils.optimizer_state import Kept, check_state, optimizers_of, slice_state_


def stepped(optimizer, *parameters):
    for parameter in parameters:
        parameter.grad = torch.arange(1.0, 1 + parameter.numel()).reshape(parameter.shape)
    optimizer.step()
    return optimizer


def test_moments_lose_the_channels_of_their_parameter():
    weight, other = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4, 3))
    optimizer = stepped(AdamW([weight, other]), weight, other)
    before = {key: value.clone() for key, value in optimizer.state[weight].items()}
    kept = Kept((4, 3), [(0, torch.tensor([0, 2])), (1, torch.tensor([1, 2]))])
    slice_state_([optimizer], {weight: kept})
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(optimizer.state[weight][key], before[key][[0, 2]][:, [1, 2]])
        assert optimizer.state[other][key].shape == (4, 3)
    assert optimizer.state[weight]["step"] == before["step"] == 1


def test_state_that_does_not_follow_is_named_and_nothing_changed():
    class Odd(AdamW):
        pass

    weight = nn.Parameter(torch.randn(4, 3))
    optimizer = stepped(Odd([weight]), weight)
    optimizer.state[weight]["flat"] = torch.zeros(12)
    with pytest.raises(UserError, match=r"the optimizer Odd keeps 'flat' of shape \(12,\) for a parameter of shape"):
        slice_state_([optimizer], {weight: Kept((4, 3), [(0, torch.tensor([0]))])})
    assert optimizer.state[weight]["exp_avg"].shape == (4, 3)


def test_second_order_and_sharded_optimizers_are_refused():
    class ZeroRedundancyOptimizer(AdamW):
        pass

    weight = nn.Parameter(torch.randn(4, 3))
    second = LBFGS([weight], max_iter=3)
    second.step(lambda: stepped_loss(weight))
    with pytest.raises(UserError, match="the optimizer LBFGS keeps"):
        check_state([second], {weight: weight.shape})
    with pytest.raises(UserError, match="ZeroRedundancyOptimizer keeps parameters in shards"):
        check_state([ZeroRedundancyOptimizer([weight])], {})


def stepped_loss(weight):
    weight.grad = None
    loss = (weight - 1).square().sum()
    loss.backward()
    return loss


def test_optimizers_that_a_module_holds_are_found_once():
    module = nn.Linear(2, 2)
    module.own = AdamW(module.parameters())
    assert optimizers_of(module, [module.own]) == [module.own]
    assert optimizers_of(module, []) == [module.own]
