import math

import numpy as np
import pytest
import torch
from scipy.spatial import distance

from lighten.pruning import score
from lighten.pruning.score import fpgm, magnitude


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
