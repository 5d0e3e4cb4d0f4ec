"""Histograms and the ranges they suggest, against plain counting and slow searches on the values themselves."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lighten.quantization.fake_quant import quantization_parameters
from lighten.quantization.histogram import (
    BINS,
    Histogram,
    coarsen,
    entropy,
    histogram,
    least_squares,
    merge,
    percentile,
)


def values(name, count=20_000):
    generator = np.random.default_rng(0)
    normal = generator.standard_normal(count)
    outlying = np.where(generator.random(count) < 1e-3, 50 * normal, normal)
    return torch.tensor(
        {
            "normal": normal,
            "outliers": outlying,
            "relu of outliers": np.maximum(outlying, 0),
            "laplace": generator.laplace(size=count),
            "lognormal": np.exp(1.5 * normal),
            "two peaks": np.where(generator.random(count) < 0.5, 0.1 * normal - 1, 0.2 * normal + 5),
            "gelu": 0.5 * 2 * normal * (1 + np.vectorize(math.erf)(2 * normal / math.sqrt(2))),
        }[name],
        dtype=torch.float32,
    )


SHAPES = ("normal", "outliers", "relu of outliers", "laplace", "lognormal", "two peaks", "gelu")


def error(x, low, high):
    scale, zero = quantization_parameters(low, high)
    x = x.double().numpy()
    return float(np.mean(((np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale - x) ** 2))


def same(a, b):
    assert torch.equal(a.counts, b.counts)
    assert (a.exponent, a.zeros, a.low, a.high) == (b.exponent, b.zeros, b.low, b.high)


numbers = st.lists(st.floats(-1e4, 1e4, width=32, allow_subnormal=False), min_size=1, max_size=30)


@given(numbers)
def test_bins_are_counted_one_by_one(given_values):
    h = histogram(torch.tensor(given_values))
    counts = [0] * BINS
    for value in given_values:
        counts[math.floor(np.float32(value) / h.width) + BINS // 2] += 1
    assert h.counts.tolist() == counts
    assert h.zeros == sum(value == 0 for value in given_values)
    assert (h.low, h.high) == (min(np.float32(given_values)), max(np.float32(given_values)))


@given(numbers)
def test_bins_are_as_narrow_as_the_values_allow(given_values):
    h, largest = histogram(torch.tensor(given_values)), max(map(abs, given_values))
    assert largest < h.width * BINS / 2
    assert h.width * BINS / 4 <= largest or h.exponent == -60


@given(numbers, numbers, numbers)
def test_any_split_gives_the_same_histogram(a, b, c):
    parts = [histogram(torch.tensor(part)) for part in (a, b, c)]
    whole = histogram(torch.tensor([*a, *b, *c]))
    same(merge(merge(parts[0], parts[1]), parts[2]), whole)
    same(merge(parts[2], merge(parts[1], parts[0])), whole)


def test_coarsening_keeps_every_count_in_its_place():
    h = histogram(torch.tensor([-1.0, -0.1, 0.0, 0.3, 1.0]))
    wide = coarsen(h, h.exponent + 3)
    assert wide.counts.sum() == 5
    assert wide.counts[math.floor(-1.0 / wide.width) + BINS // 2] >= 1
    assert coarsen(h, h.exponent + 60).counts.sum() == 5


@pytest.mark.parametrize("name", SHAPES)
def test_percentile_is_numpys_quantile(name):
    x = values(name)
    h = histogram(x)
    low, high = percentile(h, 0.99)
    expected = np.quantile(x, [0, 0.99] if x.min() >= 0 else [0.005, 0.995])
    assert (low, high) == pytest.approx(tuple(expected), abs=2 * h.width + 1e-3 * abs(expected[1]))


def test_percentile_leaves_out_one_value_in_ten_thousand() -> None:
    x = torch.arange(100_000) / 100_000
    assert percentile(histogram(x))[1] == pytest.approx(0.9999, abs=2e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_least_squares_is_as_good_as_a_search_over_the_values(name):
    x = values(name)
    ours = error(x, *least_squares(histogram(x)))
    shares = np.geomspace(1, 1 / 256, 60)
    lows = float(x.min()) * shares if x.min() < 0 else [0.0]
    search = min(error(x, float(a), float(b)) for a in lows[::2] for b in float(x.max()) * shares)
    assert ours <= 1.03 * search
    assert ours <= 1.001 * error(x, float(x.min()), float(x.max()))
    assert ours <= error(x, *percentile(histogram(x)))


def test_least_squares_gives_a_rare_outlier_up():
    x, outlier, times = values("normal"), 50.0, 2**10
    h = histogram(x)
    for _ in range(10):
        h = merge(h, h)
    h = merge(h, histogram(torch.tensor([outlier])))

    def total(low, high):
        return times * len(x) * error(x, low, high) + error(torch.tensor([outlier]), low, high)

    ours = least_squares(h)
    search = min(total(a, b) for a in np.linspace(-4.5, -2, 26) for b in np.linspace(2, 8, 31))
    assert ours[1] < 10
    assert total(*ours) <= 1.03 * search


def slow_entropy(counts, levels):
    """Return the bound (in bins) with the least divergence, written as the talk's loop over bins."""
    best = (math.inf, 0)
    for bound in range(levels, len(counts) + 1):
        p = list(counts[:bound])
        p[-1] += sum(counts[bound:])
        q = [0.0] * bound
        for level in range(levels):
            members = [i for i in range(bound) if i * levels // bound == level]
            filled = [i for i in members if counts[i] > 0]
            for i in filled:
                q[i] = sum(counts[j] for j in members) / len(filled)
        total_p, total_q = sum(p), sum(q)
        divergence = sum(
            a / total_p * math.log(a / total_p / max(b / total_q, 1e-12)) for a, b in zip(p, q, strict=True) if a
        )
        best = min(best, (divergence, bound))
    return best[1]


def test_entropy_is_the_loop_of_its_source():
    counts = np.random.default_rng(0).poisson(400 * np.exp(-np.arange(300) / 40)).astype(float)
    full = torch.zeros(BINS, dtype=torch.float64)
    full[BINS // 2 : BINS // 2 + 1200 : 4] = torch.tensor(counts)  # four bins make one of the source's
    last = int(np.nonzero(counts)[0].max()) + 1
    h = Histogram(full, -2, 0.0, 0.0, float(last))
    assert entropy(h) == (0.0, min(float(last), float(slow_entropy(list(counts[:last]), 255))))


@pytest.mark.parametrize("seed", range(4))
def test_entropy_is_the_loop_of_its_source_with_many_empty_bins(seed):
    generator = np.random.default_rng(seed)
    counts = generator.poisson(40 * np.exp(-np.arange(320) / 120)) * (generator.random(320) < 0.6)
    last = int(np.nonzero(counts)[0].max()) + 1
    full = torch.zeros(BINS, dtype=torch.float64)
    full[BINS // 2 : BINS // 2 + 4 * 320 : 4] = torch.tensor(counts.astype(float))
    bound = slow_entropy(counts[:last].astype(float).tolist(), 255)
    assert entropy(Histogram(full, -2, 0.0, 0.0, float(last))) == (0.0, min(float(last), float(bound)))


def test_entropy_is_near_onnxruntimes():
    from onnxruntime.quantization.calibrate import HistogramCollector

    x = values("laplace", 200_000).numpy()
    collector = HistogramCollector(
        method="entropy", symmetric=True, num_bins=2048, num_quantized_bins=128, percentile=99.99, scenario="same"
    )
    collector.collect({"x": [x]})
    theirs = float(np.ravel(collector.compute_collection_result()["x"][1])[0])
    assert entropy(histogram(torch.tensor(x)))[1] == pytest.approx(theirs, rel=0.3)


@pytest.mark.parametrize("rule", [percentile, least_squares, entropy])
@pytest.mark.parametrize("constant", [0.0, 3.0, -2.0])
def test_constant_activations_have_a_safe_range(rule, constant):
    low, high = rule(histogram(torch.full((50,), constant)))
    scale, zero = quantization_parameters(low, high)
    code = min(max(round(constant / scale) + zero, 0), 255)
    assert (code - zero) * scale == pytest.approx(constant, rel=1e-2)


@settings(max_examples=30)
@given(numbers, st.sampled_from([percentile, least_squares, entropy]))
def test_ranges_stay_within_what_was_seen(given_values, rule):
    h = histogram(torch.tensor(given_values))
    low, high = rule(h)
    assert min(h.low, 0) - 1e-6 <= low <= high <= max(h.high, 0) + 1e-6


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_show_in_the_extremes(bad):
    h, good = histogram(torch.tensor([1.0, bad])), histogram(torch.tensor([2.0]))
    assert h.counts.sum() == 0
    for both in (h, merge(h, good), merge(good, h)):
        assert not math.isfinite(both.high - both.low)


@pytest.mark.parametrize("seed", [0, 8, 13])
@pytest.mark.parametrize("sign", [1, -1])
def test_entropy_keeps_values_that_are_all_far_from_zero(seed, sign):
    generator = np.random.default_rng(seed)
    x = sign * (generator.uniform(2, 10) + generator.uniform(0.05, 0.3) * generator.standard_normal(5000))
    low, high = entropy(histogram(torch.tensor(x, dtype=torch.float32)))
    assert np.mean((x < low - 1e-6) | (x > high + 1e-6)) < 0.5


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_entropy_keeps_two_peaks(seed):
    generator = np.random.default_rng(seed)
    normal = generator.standard_normal(100_000)
    x = np.where(generator.random(100_000) < 0.5, 0.1 * normal - 1, 0.2 * normal + 5)
    x = torch.tensor(x, dtype=torch.float32)
    assert error(x, *entropy(histogram(x))) < 2 * error(x, float(x.min()), float(x.max()))


@pytest.mark.parametrize("pair", [(-1e-38, 1e30), (-1e-30, 1e20), (-1.0, 1.0), (-3e38, 3e38), (-2.0, 1.0)])
def test_splits_agree_whatever_the_magnitudes(pair):
    a, b = (histogram(torch.tensor([value])) for value in pair)
    same(merge(a, b), histogram(torch.tensor(pair)))
    assert merge(a, b).counts[: BINS // 2].sum() == 1


def test_a_histogram_is_not_made_finer():
    h = histogram(torch.tensor([1.0, 2.0]))
    with pytest.raises(AssertionError):
        coarsen(h, h.exponent - 1)
