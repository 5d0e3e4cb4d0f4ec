import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import (
    mean_absolute_error,
    mean_squared_error,
    r2_score,
)
from task_scoring import alike, scored

from lighten.tasks import build_task


@pytest.mark.parametrize("targets", [1, 3])
def test_scores_of_a_regression_equal_scipy(targets) -> None:
    draw = torch.Generator().manual_seed(0)
    values, labels = torch.randn(50, targets, generator=draw), torch.randn(50, targets, generator=draw)
    found = scored(targets, values, labels[:, 0] if targets == 1 else labels, "regression")
    each = [pearsonr(values[:, i], labels[:, i])[0] for i in range(targets)]
    assert found["pearson"] == pytest.approx(np.mean(each), abs=1e-5)
    assert found["worst_class"] == pytest.approx(min(each), abs=1e-5)
    assert found["loss"] == pytest.approx((values - labels).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("targets", [1, 2])
def test_numbers_are_scored_in_their_own_unit(targets) -> None:
    draw = torch.Generator().manual_seed(0)
    values, labels = torch.randn(2, 50, targets, generator=draw)
    values = labels + 0.3 * values
    mean, std = [4000.0, -2.0][:targets], [3000.0, 0.5][:targets]
    found = scored(targets, values, labels, build_task("regression", mean=mean, std=std, unit="USD"))
    x, y = (v.double().numpy() * std + mean for v in (values, labels))
    assert found["r2"] == pytest.approx(r2_score(y, x), abs=1e-5)
    assert found["mae"] == pytest.approx(mean_absolute_error(y, x), rel=1e-5)
    each = [mean_squared_error(y[:, i], x[:, i]) ** 0.5 for i in range(targets)]
    assert found["rmse"] == pytest.approx(np.mean(each), rel=1e-5)
    other = labels + 0.1
    error = np.mean([np.sqrt(0.01 * 50 / ((y[:, i] - y[:, i].mean()) ** 2).sum()) * std[i] for i in range(targets)])
    assert alike(targets, other, labels, "regression")["relative_error"] == pytest.approx(error, rel=1e-3)


@pytest.mark.filterwarnings("ignore:The variance of predictions")
def test_a_model_that_answers_the_same_for_all_has_finite_scores() -> None:
    labels = torch.randn(50, 1, generator=torch.Generator().manual_seed(0))
    found = scored(1, torch.zeros(50, 1), labels, "regression")
    assert found["pearson"] == found["worst_class"] == 0.0
    assert all(np.isfinite(value) for value in found.values())
