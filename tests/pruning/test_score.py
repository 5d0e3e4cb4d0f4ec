import math

import numpy as np
import pytest
import torch
from scipy.spatial import distance

from lighten.pruning import score
from lighten.pruning.score import conditions, fpgm, l1, magnitude, mix, random, taylor


def slow_fpgm(weight):
    """The published formula, filter by filter, in double precision."""
    filters = weight.double().flatten(1).tolist()
    return [sum(math.dist(one, other) for other in filters) for one in filters]


@pytest.fixture
def weight():
    return torch.randn(24, 5, 3, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("exact", [True, False], ids=["by subtraction", "by matrix product"])
def test_fpgm_is_the_published_formula(weight, exact, monkeypatch):
    monkeypatch.setattr(score, "EXACT_DISTANCES", 2**27 if exact else 0)
    ours = fpgm(weight)
    assert ours.dtype == torch.float32
    assert ours.tolist() == pytest.approx(slow_fpgm(weight), rel=1e-5)
    assert ours.argsort().tolist() == np.argsort(slow_fpgm(weight)).tolist()


def test_fpgm_agrees_with_the_authors_scipy_loop(weight):
    filters = weight.flatten(1).numpy()
    sums = np.sum(np.abs(distance.cdist(filters, filters, "euclidean")), axis=0)
    assert fpgm(weight).numpy() == pytest.approx(sums, rel=1e-5)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_fpgm_of_long_filters_keeps_distances_that_cancel(offset, monkeypatch):
    """Blocks that do not divide the number, filters far from zero, and some that are nearly or quite the same."""
    monkeypatch.setattr(score, "EXACT_DISTANCES", 0)
    monkeypatch.setattr(score, "BLOCK", 7)
    weight = torch.randn(25, 300, generator=torch.Generator().manual_seed(0)) + offset
    weight[20:] = weight[3] + 1e-3 * torch.randn(5, 300, generator=torch.Generator().manual_seed(1))
    weight[9] = weight[24] = weight[2]
    assert fpgm(weight).tolist() == pytest.approx(slow_fpgm(weight), rel=1e-5)
    near = torch.cat([weight[3:4], weight[20:24]]).repeat(6, 1)
    assert fpgm(near).tolist() == pytest.approx(slow_fpgm(near), rel=1e-4)


def test_fpgm_of_long_filters_multiplies_each_pair_once(weight, monkeypatch):
    monkeypatch.setattr(score, "EXACT_DISTANCES", 0)
    monkeypatch.setattr(score, "BLOCK", 6)
    pairs = []
    addmm = torch.addmm
    monkeypatch.setattr(
        torch, "addmm", lambda both, *rest, **named: pairs.append(both.numel()) or addmm(both, *rest, **named)
    )
    fpgm(weight)
    assert sum(pairs) == (24 * 24 + 4 * 36) / 2


def test_fpgm_tells_a_filter_from_its_negative(weight):
    """A distance, not a difference of norms: flipping one filter's sign changes the scores."""
    flipped = weight.clone()
    flipped[0] *= -1
    assert not torch.allclose(fpgm(flipped), fpgm(weight), rtol=1e-4)


def test_equal_filters_get_equal_scores(weight):
    weight[17] = weight[3]
    assert fpgm(weight)[17] == fpgm(weight)[3]


def test_magnitude_is_the_l2_norm(weight):
    expected = [math.sqrt(sum(x * x for x in row)) for row in weight.double().flatten(1).tolist()]
    assert magnitude(weight).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("function", [fpgm, magnitude])
def test_reads_any_weight_in_float32(function, weight):
    half = weight.bfloat16().requires_grad_()
    assert function(half).dtype == torch.float32
    assert not function(half).requires_grad
    assert torch.equal(function(half), function(half.detach().float()))


@pytest.mark.parametrize("function", [fpgm, magnitude])
def test_nodes_of_a_linear_layer_are_filters_too(function):
    assert function(torch.eye(4)).shape == (4,)


def test_l1_is_the_sum_of_absolute_values(weight):
    expected = [sum(abs(x) for x in row) for row in weight.double().flatten(1).tolist()]
    assert l1(weight).tolist() == pytest.approx(expected, rel=1e-6)


def authors_mix(weight, rate_norm, rate_dist):
    """What the published code removes: the smallest norms, then the smallest summed distances among the survivors."""
    filters = weight.double().flatten(1).numpy()
    order = np.argsort(np.linalg.norm(filters, axis=1))
    small = int(round(len(filters) * (1 - rate_norm), 9))
    rest = order[small:]
    sums = np.abs(distance.cdist(filters[rest], filters[rest])).sum(axis=0)
    return {*order[:small].tolist(), *rest[np.argsort(sums)[: int(len(filters) * rate_dist)]].tolist()}


@pytest.mark.parametrize(("rate_norm", "rate_dist"), [(0.75, 0.25), (0.9, 0.3), (1.0, 0.5), (0.5, 0.0)])
def test_mix_removes_what_the_published_code_removes(weight, rate_norm, rate_dist):
    scores = mix(weight * torch.linspace(0.5, 2, 24)[:, None, None, None], rate_norm=rate_norm)
    expected = authors_mix(weight * torch.linspace(0.5, 2, 24)[:, None, None, None], rate_norm, rate_dist)
    assert set(scores.argsort()[: len(expected)].tolist()) == expected


def test_mix_goes_on_where_an_earlier_update_stopped(weight):
    """Half of the share by norm is gone: the other half is still by norm, and no more."""
    whole = mix(weight, rate_norm=0.75)
    by_norm = [i for i in whole.argsort().tolist() if whole[i] < 0]
    assert by_norm == magnitude(weight).argsort()[:6].tolist()
    live = sorted(set(range(24)) - set(by_norm[:3]))
    later = mix(weight[live], rate_norm=0.75, gone=3)
    assert [live[i] for i in later.argsort().tolist() if later[i] < 0] == by_norm[3:]


def test_taylor_is_the_squared_first_order_change(weight):
    """Against the loss itself: to first order, zeroing a filter changes it by the root of its score."""
    weight = weight.double().requires_grad_()
    target = torch.randn(24, 5, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = (weight * target).sum() + (weight[3] ** 2).sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    small = 1e-6
    changes = []
    for which in range(24):
        moved = weight.detach().clone()
        moved[which] *= 1 - small
        after = (moved * target).sum() + (moved[3] ** 2).sum()
        changes.append(float(((loss - after) / small).detach()) ** 2)
    assert taylor(weight, gradient).tolist() == pytest.approx(changes, rel=1e-3)


def test_random_depends_on_the_name_alone():
    torch.manual_seed(0)
    one = random(8, name="a")
    torch.manual_seed(1)
    assert torch.equal(random(8, name="a"), one)
    assert not torch.equal(random(8, name="b"), one)


@pytest.mark.parametrize(
    ("norms", "spread", "floor", "good"),
    [
        ([1.0, 1.0, 1.0, 1.0], 0.0, 1.0, False),
        ([0.0, 1.0, 2.0, 3.0], math.sqrt(1.25) / 1.5, 0.0, True),
        ([2.0, 3.0, 6.0, 9.0], math.sqrt(7.5) / 5, 0.4, False),
        ([0.1, 1.0, 1.0, 1.0], math.sqrt(0.151875) / 0.775, 0.1 / 0.775, True),
    ],
)
def test_a_norm_ranks_well_where_norms_are_spread_and_the_smallest_is_near_zero(norms, spread, floor, good):
    found = conditions(torch.tensor(norms))
    assert (found.spread, found.floor) == pytest.approx((spread, floor), abs=1e-6)
    assert found.rank_well is good
