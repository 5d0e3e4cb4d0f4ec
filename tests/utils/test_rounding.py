"""Sums that are rounded otherwise differ by little, and nothing else does."""

import pytest
import torch
import torch.nn.functional as F

from lighten.utils.rounding import RoundedOtherwise


@pytest.mark.parametrize(
    "adds_up",
    [
        lambda x: x @ x.mT, lambda x: x.sum(-1), lambda x: x.softmax(-1), lambda x: x.cumsum(-1), lambda x: x.var(-1),
        lambda x: F.conv1d(x, x[:, :, :3]), lambda x: F.layer_norm(x, (8,)), lambda x: F.group_norm(x, 2),
        lambda x: F.scaled_dot_product_attention(x, x, x), lambda x: torch.einsum("bij,bkj->bik", x, x),
        lambda x: F.rms_norm(x, (8,)), lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4)),
        lambda x: x.norm(dim=-1), lambda x: F.linear(x, x[0]),
    ],
)  # fmt: skip
def test_what_adds_up_is_rounded_otherwise_by_little(adds_up):
    x = torch.rand(4, 4, 8, generator=torch.Generator().manual_seed(0))
    plain = adds_up(x)
    with RoundedOtherwise():
        other = adds_up(x)
    assert not torch.equal(plain, other)
    torch.testing.assert_close(plain, other, rtol=1e-6, atol=1e-6)


def test_what_adds_nothing_up_is_left_alone():
    x = torch.rand(4, 8)
    with RoundedOtherwise():
        assert torch.equal(x.relu().flip(-1) * 2 + 1, 2 * x.flip(-1) + 1)
