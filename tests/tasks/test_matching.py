"""Places are matched to boxes at the least cost; against all permutations, and a loop."""

from itertools import permutations

import pytest
import torch
import torch.nn.functional as F

from lighten.tasks.matching import costs, matched

G = torch.Generator().manual_seed(0)
COST = torch.randn(4, 6, 3, generator=G)
THERE = torch.tensor([[True, True, True], [True, False, True], [False, False, False], [False, True, False]])


def pairs_of(found, sample):
    return {(int(p), int(b)) for s, p, b in zip(*found, strict=True) if s == sample}


def test_one_place_a_box_at_the_least_sum():
    found = matched(COST, THERE, 1)
    for sample in range(4):
        boxes = THERE[sample].nonzero()[:, 0].tolist()
        columns = torch.tensor(boxes, dtype=torch.int64)
        best = min(permutations(range(6), len(boxes)), key=lambda ps: float(COST[sample, list(ps), columns].sum()))
        assert pairs_of(found, sample) == set(zip(best, boxes, strict=True))


@pytest.mark.parametrize("matches", [2, 3, 50])
def test_several_places_a_box_and_one_box_a_place(matches):
    found, alone = matched(COST, THERE, matches), matched(COST, THERE, 1)
    for sample in range(4):
        boxes, own = THERE[sample].nonzero()[:, 0].tolist(), dict(pairs_of(alone, sample))
        expected = set()
        for place in range(6):
            wants = [
                b for b in boxes if place in COST[sample, :, b].topk(min(matches, 6), largest=False).indices.tolist()
            ]
            if place in own:
                expected.add((place, own[place]))
            elif wants:
                expected.add((place, min(wants, key=lambda b: float(COST[sample, place, b]))))
        assert pairs_of(found, sample) == expected
        assert {b for _, b in expected} == set(boxes)


def test_a_box_whose_cheap_places_are_wanted_more_by_another_keeps_one_of_its_own():
    cost = torch.tensor([[[0.0, 1.0], [0.0, 1.0], [5.0, 5.0], [9.0, 9.0]]])
    samples, places, boxes = matched(cost, torch.ones(1, 2, dtype=torch.bool), 2)
    assert sorted(boxes.tolist()) == [0, 1]
    assert set(places.tolist()) == {0, 1}
    assert samples.tolist() == [0, 0]


def test_answers_that_are_not_finite_are_matched_all_the_same():
    cost = COST.clone()
    cost[0] = torch.nan
    assert len(pairs_of(matched(cost, THERE, 1), 0)) == 3


def test_costs_are_the_formula():
    answers = torch.rand(2, 4, 7, generator=G).double()
    labels = torch.cat([torch.randint(0, 3, (2, 2, 1), generator=G), torch.rand(2, 2, 4, generator=G)], -1).double()
    found = costs(answers, labels)
    for b in range(2):
        for p in range(4):
            for g in range(2):
                odds = answers[b, p, 4 + int(labels[b, g, 0])].sigmoid()
                kind = 0.25 * (1 - odds) ** 2 * -odds.log() - 0.75 * odds**2 * -(1 - odds).log()
                distance = F.l1_loss(answers[b, p, :4], labels[b, g, 1:], reduction="sum")
                (x, y, w, h), (u, v, s, t) = answers[b, p, :4].tolist(), labels[b, g, 1:].tolist()
                across = max(0, min(x + w / 2, u + s / 2) - max(x - w / 2, u - s / 2))
                down = max(0, min(y + h / 2, v + t / 2) - max(y - h / 2, v - t / 2))
                union = w * h + s * t - across * down
                hull = (max(x + w / 2, u + s / 2) - min(x - w / 2, u - s / 2)) * (
                    max(y + h / 2, v + t / 2) - min(y - h / 2, v - t / 2)
                )
                near = across * down / union - (hull - union) / hull
                assert float(found[b, p, g]) == pytest.approx(float(2 * kind + 5 * distance - 2 * near), abs=1e-9)
