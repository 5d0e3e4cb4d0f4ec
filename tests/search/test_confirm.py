import itertools
import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from lighten.errors import UserError
from lighten.search.confirm import accelerated_bound, confirm_drop, confirm_logged, paired_bound, safe_drop, too_few
from lighten.tasks import task_of


def likelihood_bound(lost, won, n, confidence):
    """Tango's bound the slow way: the nuisance share by maximising the likelihood numerically."""
    z = stats.norm.ppf(confidence)

    def score(d):
        def unlikely(q):  # q: share that the compressed network alone gets right, q + d the original alone
            shares = np.array([q + d, q, 1 - 2 * q - d])
            counts = np.array([lost, won, n - lost - won])
            return -(counts * np.log(np.maximum(shares, 1e-300))).sum()

        low, high = max(0.0, -d), (1 - d) / 2
        q = optimize.minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
        return (lost - won - n * d) / math.sqrt(n * (2 * q + d * (1 - d))) + z

    return optimize.brentq(score, (lost - won) / n + 1e-9, 1 - 1e-9)


@pytest.mark.parametrize(("lost", "won", "n"), [(3, 1, 50), (12, 9, 400), (40, 2, 1000), (1, 6, 30), (0, 4, 60)])
def test_the_bound_is_that_of_the_likelihood(lost, won, n):
    assert paired_bound(lost, won, n) == pytest.approx(likelihood_bound(lost, won, n, 0.95), abs=1e-5)


def test_of_a_loss_alone_it_is_wilsons_interval():
    """Where nothing is won, paired proportions are one proportion."""
    wilson = stats.binomtest(7, 200).proportion_ci(confidence_level=0.90, method="wilson").high
    assert paired_bound(7, 0, 200) == pytest.approx(wilson, abs=1e-6)


def test_without_a_difference_it_is_the_exact_bound():
    exact = stats.binomtest(0, 150).proportion_ci(confidence_level=0.90, method="exact").high
    assert paired_bound(0, 0, 150) == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize(("n", "p_lost", "p_won"), [(40, 0.1, 0.05), (60, 0.05, 0.05), (60, 0.2, 0.1)])
def test_coverage_by_every_outcome(n, p_lost, p_won):
    covered = 0.0
    for lost, won in itertools.product(range(n + 1), repeat=2):
        if lost + won <= n:
            odds = stats.multinomial.pmf([lost, won, n - lost - won], n, [p_lost, p_won, 1 - p_lost - p_won])
            if odds > 1e-7:
                covered += odds * (paired_bound(lost, won, n) >= p_lost - p_won)
    assert 0.94 <= covered <= 0.98


def answers_of(labels, right):
    return torch.nn.functional.one_hot(torch.where(right, labels, (labels + 1) % 3), 3).float()


def test_classification_counts_what_is_lost_and_won():
    labels = torch.arange(300) % 3
    before, after = torch.ones(300, dtype=torch.bool), torch.ones(300, dtype=torch.bool)
    before[:4], after[10:20] = False, False  # 4 won, 10 lost
    batches = [answers_of(labels, each).split(70) for each in (before, after)]
    found = confirm_drop(task_of("classification"), labels.split(70), *batches, max_drop=0.03)
    assert found.drop == pytest.approx(6 / 300)
    assert found.bound == pytest.approx(likelihood_bound(10, 4, 300, 0.95), abs=1e-5)
    assert (found.samples, found.confidence) == (300, 0.95)
    n = found.samples_needed / 300
    assert paired_bound(10 * n, 4 * n, 300 * n) <= 0.03 < paired_bound(10 * n * 0.98, 4 * n * 0.98, 300 * n * 0.98)
    arrays = [[batch.numpy() for batch in part] for part in (labels.split(70), *batches)]
    assert confirm_drop(task_of("classification"), *arrays, max_drop=0.03) == found


def test_no_number_of_samples_decides_what_is_broken_and_none_is_needed_for_what_is_met():
    labels = torch.arange(300) % 3
    right = torch.ones(300, dtype=torch.bool)
    wrong = right.clone()
    wrong[:9] = False
    batches = [[answers_of(labels, each)] for each in (right, wrong)]
    task = task_of("classification")
    assert confirm_drop(task, [labels], *batches, max_drop=0.02).samples_needed is None
    assert confirm_drop(task, [labels], *batches, max_drop=0.2).samples_needed is None


def regression_parts(n, noise, seed):
    g = np.random.default_rng(seed)
    labels = g.normal(size=(n, 1))
    before = labels + 0.3 * g.normal(size=(n, 1))
    return [torch.tensor(x, dtype=torch.float32) for x in (labels, before, before + noise * g.normal(size=(n, 1)))]


def test_the_bootstrap_is_scipys():
    task = task_of("regression")
    labels, before, after = regression_parts(120, 0.1, 0)
    found = confirm_drop(task, labels.split(50), before.split(50), after.split(50), max_drop=0.001)

    def drop(y, a, b):
        r2 = [1 - ((y - x) ** 2).sum() / ((y - y.mean()) ** 2).sum() for x in (a, b)]
        return 1 - r2[1] / r2[0]

    columns = [x[:, 0].double().numpy() for x in (labels, before, after)]
    scipys = stats.bootstrap(
        columns, drop, paired=True, vectorized=False, method="BCa", n_resamples=3000, alternative="less",
        rng=np.random.default_rng(1),
    )  # fmt: skip
    assert found.drop == pytest.approx(drop(*columns), abs=1e-6)
    spread = scipys.standard_error
    assert found.bound == pytest.approx(scipys.confidence_interval.high, abs=0.15 * spread)
    assert found.samples_needed is None  # the drop itself is above


def test_samples_needed_of_a_bootstrap_shrink_with_the_root():
    task = task_of("regression")
    labels, before, after = regression_parts(100, 0.05, 3)
    found = confirm_drop(task, [labels], [before], [after])
    limit = found.drop + (found.bound - found.drop) / 2
    assert confirm_drop(task, [labels], [before], [after], max_drop=limit).samples_needed == pytest.approx(400, abs=1)


@pytest.mark.parametrize("name", ["image", "classification"])
def test_answers_that_do_not_differ_are_bounded_by_what_was_not_seen(name):
    labels, answers = torch.arange(90) % 3, torch.eye(3).repeat(30, 1)
    if name == "image":
        labels, answers = torch.randn(2, 90, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found = confirm_drop(task_of(name), [labels], [answers], [answers.clone()], max_drop=0.01)
    assert found.drop == 0
    assert found.bound == pytest.approx(1 - 0.05 ** (1 / 90))
    assert found.samples_needed == pytest.approx(math.log(0.05) / math.log(0.99), abs=10)


@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_the_level_is_efrons(skew):
    """Efron's formula by hand: bias from the share of draws below the value, acceleration from parts."""
    drawn = np.linspace(0, 1, 100_001)
    without = np.array([1.0, -1.0, 2.0, -2.0]) if not skew else np.array([0.0, 0.0, 0.0, -4.0])
    away = without.mean() - without
    a = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    z0, z = stats.norm.ppf(0.3), stats.norm.ppf(0.95)
    level = stats.norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z)))
    assert accelerated_bound(0.3, drawn, without, 0.95) == pytest.approx(level, abs=1e-4)


def test_the_bound_of_a_mean_covers_as_often_as_it_says():
    """A skewed drop of few samples, where a plain percentile falls short."""
    g = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        sample = g.exponential(size=40)
        drawn = sample[g.integers(40, size=(500, 40))].mean(1)
        without = (sample.sum() - sample) / 39
        held += accelerated_bound(sample.mean(), drawn, without, 0.95) >= 1.0
    assert 0.9 <= held / 300 <= 0.98


def test_a_choice_reckons_with_both_splits():
    labels = torch.arange(300) % 3
    right, wrong = torch.ones(300, dtype=torch.bool), torch.arange(300) >= 6
    found = confirm_drop(task_of("classification"), [labels], *[[answers_of(labels, x)] for x in (right, wrong)])
    own = found.bound - found.drop
    assert safe_drop(found, 300) == pytest.approx(found.drop + own * (1 + math.sqrt(2)))
    assert found.bound < safe_drop(found, 10**9) == pytest.approx(found.bound, abs=1e-4)
    assert safe_drop(found, 10**9) < safe_drop(found, 3000) < safe_drop(found, 300)


def test_a_metric_that_was_logged_is_bounded_by_its_batches():
    g = np.random.default_rng(0)
    before = g.normal(0.9, 0.02, size=40)
    after = before - g.normal(0.01, 0.01, size=40)
    found = confirm_logged(lambda a, b: a - b, [32] * 40, before, after, max_drop=0.011)
    t = stats.ttest_rel(before, after).confidence_interval(0.90).high
    assert found.drop == pytest.approx((before - after).mean())
    assert found.bound == pytest.approx(t, abs=0.15 * (t - found.drop))
    assert found.samples == 1280
    assert confirm_logged(lambda a, b: a - b, [30, 10], [1.0, 0.0], [0.0, 0.0]).drop == pytest.approx(0.75)
    assert confirm_logged(lambda a, b: a - b, [32] * 40, before, before).bound == pytest.approx(1 - 0.05 ** (1 / 1280))


def test_bad_answers_are_one_line():
    task = task_of("classification")
    with pytest.raises(UserError, match="no samples"):
        confirm_drop(task, [], [], [])
    labels, answers = torch.zeros(4, dtype=torch.int64), torch.zeros(4, 3)
    with pytest.raises(UserError, match="answers of 4 and 3 samples, labels of 4"):
        confirm_drop(task, [labels], [answers], [answers[:3]])
    with pytest.raises(UserError, match=r"no label .* counts"):
        confirm_drop(task, [labels - 100], [answers], [answers])


def test_what_so_few_samples_can_never_confirm_is_said_with_the_number_that_can():
    words = too_few(200, 0.01)
    assert words.startswith("200 samples to confirm by: the bound of the drop is 1.49 % even where no answer differs")
    needed = int(words.split("about ")[1].split()[0])
    assert too_few(needed, 0.01) is None
    assert too_few(needed - 1, 0.01) is not None
    assert too_few(10**6, 0.0).endswith("above 0 with any number; ask for a drop above 0")
    labels, answers = torch.arange(200) % 3, torch.eye(3).repeat(67, 1)[:200]
    assert confirm_drop(task_of("classification"), [labels], [answers], [answers]).bound > 0.01
