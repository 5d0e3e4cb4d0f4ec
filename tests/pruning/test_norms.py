"""Norms while channels are masked compute what they will compute without them."""

import copy

import pytest
import torch
from torch import nn

from lighten.pruning.norms import leave_out_, maskable, restore_

REMOVED, KEPT = (1, 4), (0, 2, 3, 5)


def channels_last(norm):
    return not isinstance(norm, nn.GroupNorm)


def shapes(norm):
    return (3, 7, 6) if channels_last(norm) else (3, 6, 5, 4)


@pytest.fixture(
    params=[
        lambda: nn.LayerNorm(6),
        lambda: nn.LayerNorm(6, bias=False),
        lambda: nn.RMSNorm(6, eps=1e-6),
        lambda: nn.RMSNorm(6),
        lambda: nn.GroupNorm(1, 6),
    ],
    ids=["layer", "layer without bias", "rms", "rms without eps", "group of one"],
)
def norm(request):
    made = request.param()
    for parameter in made.parameters():
        parameter.data.uniform_(0.5, 2.0)
    return made


def narrowed(norm):
    small = copy.deepcopy(norm)
    for name, parameter in small.named_parameters():
        setattr(small, name, nn.Parameter(parameter[list(KEPT)]))
    if isinstance(small, nn.GroupNorm):
        small.num_channels = 4
    else:
        small.normalized_shape = (4,)
    return small


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_live_channels_are_as_if_the_others_were_gone(norm, dtype, most):
    x = torch.randn(shapes(norm), dtype=dtype)
    small = narrowed(norm).to(dtype)
    leave_out_(norm.to(dtype), REMOVED)
    dim = -1 if channels_last(norm) else 1
    index = torch.tensor(KEPT)
    gap = norm(x).index_select(dim, index) - small(x.index_select(dim, index))
    assert norm(x).dtype == dtype
    assert gap.abs().max() <= most


def test_it_stays_what_it_is_and_comes_back(norm):
    kind, state, x = type(norm), set(norm.state_dict()), torch.randn(shapes(norm))
    before = norm(x)
    leave_out_(norm, REMOVED)
    assert isinstance(norm, kind)
    assert set(norm.state_dict()) == state
    assert not torch.allclose(norm(x), before)
    leave_out_(norm, (0,))
    restore_(copy.deepcopy(norm))
    restore_(norm)
    assert type(norm) is kind
    assert torch.equal(norm(x), before)
    assert not list(norm.buffers())


def test_a_subclass_keeps_its_own_forward_around_the_masked_one():
    class Doubled(nn.LayerNorm):
        def forward(self, x):
            return 2 * super().forward(x)

    norm, x = Doubled(6), torch.randn(3, 6)
    leave_out_(norm, REMOVED)
    plain = nn.LayerNorm(4)
    assert torch.allclose(norm(x)[:, list(KEPT)], 2 * plain(x[:, list(KEPT)]), atol=1e-6)


def test_whole_groups_need_no_mask():
    norm = nn.GroupNorm(3, 6)
    leave_out_(norm, (0, 1))
    assert type(norm) is nn.GroupNorm


@pytest.mark.parametrize("module", [nn.LayerNorm(6, elementwise_affine=False), nn.BatchNorm1d(6), nn.Linear(6, 6)])
def test_others_are_left_alone(module):
    kind = type(module)
    assert not maskable(module)
    leave_out_(module, REMOVED)
    assert type(module) is kind
