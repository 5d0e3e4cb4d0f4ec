"""Which losses take part with what weight, and how the sum is made."""

import pytest
import torch

from lighten.distillation.loss import cross_entropy, dist, soft_labels
from lighten.distillation.terms import BatchOutputs, CrossRank, WeightedLosses, check_terms
from lighten.errors import UserError


def checked(losses, soft_weight=0.9, temperature=4.0, *, teacher=True, task="classification"):
    return check_terms(losses, soft_weight, temperature, teacher=teacher, task=task)


def test_weights_come_from_soft_weight_or_by_name() -> None:
    assert checked(None, 0.75) == {"soft_labels": 0.75, "cross_entropy": 0.25}
    assert checked(None, 0.75, teacher=False) == {"cross_entropy": 1.0}
    assert checked(None, 0.75, task="regression") == {"soft_labels": 0.75, "mean_squared_error": 0.25}
    assert checked({"soft_labels": 5, "cross_entropy": 0}) == {"soft_labels": 5}


@pytest.mark.parametrize(
    ("losses", "settings", "told"),
    [
        ({"soft_label": 1.0}, {}, "did you mean 'soft_labels'"),
        ({"soft_labels": -1.0}, {}, "losses.soft_labels=-1.0"),
        ({"soft_labels": {"from": 1.0, "to": -1.0}}, {}, "losses.soft_labels=-1.0: expected a number at least 0"),
        ({"soft_labels": {"from": 1.0}}, {}, "to is missing"),
        ({"soft_labels": {"from": 1.0, "to": 0.0, "shape": "linaer"}}, {}, "did you mean 'linear'"),
        ({"soft_labels": "1"}, {}, "expected a finite number"),
        ({"cross_entropy": 0.0}, {}, "nothing to learn from"),
        ({"soft_labels": 1.0}, {"teacher": False}, "no teacher"),
        ({"hint": 1.0}, {"teacher": False}, "no teacher"),
        ({"dkd": 1.0}, {"task": "regression"}, "task='regression' has no use for"),
        ({"mean_squared_error": 1.0}, {}, "task='classification' has no use for"),
        (None, {"soft_weight": 1.5}, "soft_weight=1.5"),
        (None, {"temperature": {"from": 4.0, "to": 0.0}}, "temperature=0.0"),
        (None, {"task": "clasification"}, "did you mean 'classification'"),
    ],
)
def test_weights_without_sense_are_refused(losses, settings, told) -> None:
    with pytest.raises(UserError, match=told):
        checked(losses, **settings)


def outputs() -> BatchOutputs:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 8, 4, generator=draw)
    return BatchOutputs(logits[0], torch.arange(8) % 4, teacher=logits[1])


def test_weights_and_temperature_follow_their_schedules() -> None:
    batch = outputs()
    weights = {"soft_labels": {"from": 1.0, "to": 0.0, "begin": 0.5}, "cross_entropy": {"from": 0.0, "to": 2.0}}
    terms = WeightedLosses(weights, {"from": 4.0, "to": 1.0, "end": 0.5})
    for progress, soft, hard, temperature in ((0.0, 1.0, 0.0, 4.0), (0.25, 1.0, 0.5, 2.5), (0.75, 0.5, 1.5, 1.0)):
        found = terms(batch, progress, CrossRank())
        assert {name: weight for name, (weight, _) in found.items()} == {
            name: weight for name, weight in (("soft_labels", soft), ("cross_entropy", hard)) if weight
        }
        torch.testing.assert_close(found["soft_labels"][1], soft_labels(batch.student, batch.teacher, temperature))
    assert list(terms(batch, 1.0, CrossRank())) == ["cross_entropy"]


def test_losses_that_couple_samples_see_all_ranks() -> None:
    batch = outputs()
    other = torch.randn(8, 4, generator=torch.Generator().manual_seed(5))
    found = WeightedLosses({"dist": 1.0}, 1.0, options={"dist": {"gamma": 3.0}})(
        batch, 0.0, CrossRank(gather=lambda x: torch.cat([x, other]))
    )
    student, teacher = torch.cat([batch.student, other]), torch.cat([batch.teacher, other])
    torch.testing.assert_close(found["dist"][1], dist(student, teacher, 1.0, gamma=3.0))


def test_tasks_take_their_own_soft_labels() -> None:
    batch = outputs()
    batch.labels = torch.randint(0, 2, (8, 4)).float()
    both = {"soft_labels": 1.0, "cross_entropy": 1.0}
    several = WeightedLosses(both, 2.0, task="multilabel")(batch, 0.0, CrossRank())
    question = torch.nn.functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(several["cross_entropy"][1], question(batch.student, batch.labels))
    batch.labels = torch.randn(8, 4)
    values = WeightedLosses({"soft_labels": 1.0, "mean_squared_error": 1.0}, 2.0, task="regression")(
        batch, 0.0, CrossRank()
    )
    torch.testing.assert_close(values["soft_labels"][1], (batch.student - batch.teacher).square().mean())
    torch.testing.assert_close(values["mean_squared_error"][1], (batch.student - batch.labels).square().mean())


def test_masked_language_models_divide_by_the_tokens_of_all_ranks() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 6, generator=draw)
    labels = torch.full((3, 4), -100)
    labels[0, 1], labels[2, 0] = 3, 5
    batch = BatchOutputs(logits[0], labels, teacher=logits[1], mask=torch.ones(3, 4))
    found = WeightedLosses({"soft_labels": 5.0, "cross_entropy": 2.0}, 2.0, task="masked_lm")(
        batch, 0.0, CrossRank(mean=lambda count: count * 2)
    )
    torch.testing.assert_close(found["cross_entropy"][1], cross_entropy(logits[0], labels) / 2)
    torch.testing.assert_close(found["soft_labels"][1], soft_labels(logits[0], logits[1], 2.0) / 2)


def test_losses_and_options_without_names():
    with pytest.raises(UserError, match=r"losses=\['soft_labels'\], expected weights by name"):
        check_terms(["soft_labels"], 0.9, 4.0, teacher=True)
    with pytest.raises(UserError, match=r"loss_options=\[1\], expected keywords by loss"):
        WeightedLosses({"soft_labels": 1.0}, 4.0, options=[1])
