"""Norms while channels are masked compute what they will compute without them."""

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from norm_nets import Bare, First, Response, Rms
from torch import nn

from lighten.pruning.norms import leave_out_, restore_, restore_masks_

REMOVED, KEPT = (1, 4), (0, 2, 3, 5)


def channels_last(norm):
    return not isinstance(norm, nn.GroupNorm | Own | First)


def mask(norm, removed=REMOVED):
    leave_out_(norm, removed, 6, getattr(norm, "lies", None))


def shapes(norm):
    return (3, 5, 4, 6) if isinstance(norm, Response) else (3, 7, 6) if channels_last(norm) else (3, 6, 5, 4)


class Own(nn.Module):
    """A norm that calls the function itself, in float32, over the second dimension, under names of its own."""

    def __init__(self):
        super().__init__()
        self.gamma, self.beta, self.size = nn.Parameter(torch.ones(6)), nn.Parameter(torch.zeros(6)), None

    def forward(self, x):
        y = F.layer_norm(x.transpose(1, -1).float(), (len(self.gamma),), self.gamma.float(), self.beta.float(), 1e-6)
        return y.transpose(1, -1).type_as(x)


@pytest.fixture(
    params=[
        Own,
        Rms,
        lambda: Rms(one=1.0),
        lambda: Rms(by_width=True),
        First,
        Response,
        Bare,
        lambda: nn.LayerNorm(6),
        lambda: nn.LayerNorm(6, bias=False),
        lambda: nn.RMSNorm(6, eps=1e-6),
        lambda: nn.RMSNorm(6),
        lambda: nn.GroupNorm(1, 6),
    ],
    ids=[
        "own",
        "llama",
        "gemma",
        "by width",
        "first",
        "response",
        "bare",
        "layer",
        "layer without bias",
        "rms",
        "rms without eps",
        "group of one",
    ],
)
def norm(request):
    made = request.param()
    for parameter in made.parameters():
        parameter.data.uniform_(0.5, 2.0)
    return made


def narrowed(norm):
    small = copy.deepcopy(norm)
    for name, parameter in small.named_parameters():
        dim = parameter.shape.index(6)
        setattr(small, name, nn.Parameter(parameter.index_select(dim, torch.tensor(KEPT))))
    if isinstance(small, nn.GroupNorm):
        small.num_channels = 4
    elif isinstance(small, Rms):
        small.dim = 4
    elif isinstance(small, nn.LayerNorm | nn.RMSNorm):
        small.normalized_shape = (4,)
    return small


@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_live_channels_are_to_the_bit_as_if_the_others_were_gone(norm, dtype, autocast):
    x = 0.01 * torch.randn(shapes(norm), dtype=dtype)  # small, so that an eps of another precision shows
    small = narrowed(norm).to(dtype)
    mask(norm.to(dtype))
    dim = -1 if channels_last(norm) else 1
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        ours, theirs = norm(x), small(x.index_select(dim, torch.tensor(KEPT)))
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours.index_select(dim, torch.tensor(KEPT)), theirs)
    assert not ours.index_select(dim, torch.tensor(REMOVED)).any()


def test_it_stays_what_it_is_and_comes_back(norm):
    kind, x = type(norm), torch.randn(shapes(norm))
    before = norm(x)
    mask(norm)
    assert isinstance(norm, kind)
    assert not list(norm.buffers())  # whoever averages weights pairs the buffers of two models by their order
    assert not torch.allclose(norm(x), before)
    mask(norm, (0,))
    restore_(copy.deepcopy(norm))
    restore_(norm)
    assert type(norm) is kind
    assert torch.equal(norm(x), before)
    assert vars(norm).keys() == vars(copy.deepcopy(norm)).keys()


def test_a_state_dict_says_what_is_masked_and_loads_into_nothing_else(norm):
    plain, x = copy.deepcopy(norm), torch.randn(shapes(norm))
    mask(norm)
    expected, state = norm(x), copy.deepcopy(norm.state_dict())
    assert state["live"].flatten().tolist() == [i in KEPT for i in range(6)]
    with pytest.raises(RuntimeError, match="live"):
        plain.load_state_dict(state)
    restore_masks_(plain, state)
    plain.load_state_dict(state)
    assert torch.equal(plain(x), expected)
    mask(norm, (0,))
    norm.load_state_dict(state)
    assert torch.equal(norm(x), expected)
    del state["live"]
    norm.load_state_dict(state)  # of a network that was not masked
    assert not torch.equal(norm(x), expected)


def test_it_is_copied_pickled_traced_and_cast(norm):
    x = torch.randn(shapes(norm))
    mask(norm)
    expected = norm(x)
    assert torch.equal(copy.deepcopy(norm)(x), expected)
    if type(norm).__module__.startswith("torch"):  # a class of a test module cannot be imported again
        assert torch.equal(pickle.loads(pickle.dumps(norm))(x), expected)
    assert torch.equal(torch.export.export(norm, (x,), strict=False).module()(x), expected)
    assert torch.allclose(norm.double()(x.double()), expected.double(), atol=1e-5)
    assert not list(norm.to("meta").buffers())


def test_it_learns_as_if_the_others_were_gone(norm):
    small, x = narrowed(norm).double(), torch.randn(shapes(norm), dtype=torch.float64)
    mask(norm.double())
    dim, kept = -1 if channels_last(norm) else 1, torch.tensor(KEPT)
    ours, theirs = x.clone().requires_grad_(), x.index_select(dim, kept).requires_grad_()
    norm(ours).pow(3).sum().backward()
    small(theirs).pow(3).sum().backward()
    assert torch.allclose(ours.grad.index_select(dim, kept), theirs.grad, atol=1e-6)
    for one, other in zip(norm.parameters(), small.parameters(), strict=True):
        place = one.shape.index(6)
        assert torch.allclose(one.grad.index_select(place, kept), other.grad, atol=1e-6)
        assert not one.grad.index_select(place, torch.tensor(REMOVED)).any()


def test_a_width_that_lies_in_two_dimensions_is_that_of_the_channels():
    norm = First()
    mask(norm)
    x = torch.randn(3, 6, 6, 6)
    assert torch.equal(norm(x)[:, list(KEPT)], narrowed(First())(x[:, list(KEPT)]))


def test_a_subclass_keeps_its_own_forward_around_the_masked_one():
    class Doubled(nn.LayerNorm):
        def forward(self, x):
            return 2 * super().forward(x)

    norm, x = Doubled(6), torch.randn(3, 6)
    leave_out_(norm, REMOVED, 6)
    plain = nn.LayerNorm(4)
    assert torch.allclose(norm(x)[:, list(KEPT)], 2 * plain(x[:, list(KEPT)]), atol=1e-6)


def test_whole_groups_need_no_mask():
    norm = nn.GroupNorm(3, 6)
    leave_out_(norm, (0, 1), 6)
    assert type(norm) is nn.GroupNorm


def test_norms_channel_by_channel_are_left_alone():
    for module in (nn.BatchNorm1d(6), nn.InstanceNorm1d(6, affine=True)):
        kind = type(module)
        leave_out_(module, REMOVED, 6)
        assert type(module) is kind
