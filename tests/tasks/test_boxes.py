"""Overlaps, the suppression of weaker boxes and hits, against loops in plain Python."""

import pytest
import torch

from lighten.tasks.boxes import centred, detections, edges, found, generalised_overlap, hits, kept, overlap


def boxes_of(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    size = 0.1 + 0.4 * torch.rand(*shape, 2, generator=g)
    centre = size / 2 + torch.rand(*shape, 2, generator=g) * (1 - size)
    return torch.cat([centre, size], -1).double()


def area(box):
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def slow_overlap(a, b):
    shared = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    union = area(a) + area(b) - shared
    hull = area([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
    return shared / union, shared / union - (hull - union) / hull


def test_forms_of_boxes_are_each_others_inverse():
    boxes = boxes_of(7)
    assert torch.allclose(centred(edges(boxes)), boxes)
    assert edges(torch.tensor([[0.5, 0.5, 0.2, 0.4]])).tolist()[0] == pytest.approx([0.4, 0.3, 0.6, 0.7])


def test_overlaps_are_those_of_a_loop():
    ours, theirs = edges(boxes_of(6)), edges(boxes_of(5, seed=1))
    both = overlap(ours[:, None], theirs[None]), generalised_overlap(ours[:, None], theirs[None])
    for i, a in enumerate(ours.tolist()):
        for j, b in enumerate(theirs.tolist()):
            assert [float(x[i, j]) for x in both] == pytest.approx(slow_overlap(a, b), abs=1e-12)


def test_overlaps_of_boxes_without_area_are_finite():
    flat = torch.zeros(1, 4, requires_grad=True)
    for measure in (overlap, generalised_overlap):
        value = measure(edges(flat), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
        assert value.isfinite().all()
        assert torch.autograd.grad(value.sum(), flat)[0].isfinite().all()


@pytest.mark.parametrize("nms", [0.1, 0.4, 0.7])
def test_weaker_boxes_go_as_in_a_loop(nms):
    sides, classes = edges(boxes_of(19, 40)), torch.randint(0, 2, (19, 40), generator=torch.Generator().manual_seed(2))
    stays = kept(sides, classes, nms)
    for boxes, kinds, mask in zip(sides.tolist(), classes.tolist(), stays.tolist(), strict=True):
        chosen = []
        for i, box in enumerate(boxes):
            if all(kinds[i] != kinds[j] or slow_overlap(box, boxes[j])[0] <= nms for j in chosen):
                chosen.append(i)
        assert [i for i, there in enumerate(mask) if there] == chosen


def test_detections_are_the_likeliest_pairs_of_place_and_class():
    answers = torch.cat([boxes_of(2, 6), torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(3))], -1)
    for picture, each in zip(answers, detections(answers, most=5, least=0.4), strict=True):
        pairs = [(float(picture[p, 4 + c].sigmoid()), p, c) for p in range(6) for c in range(3)]
        best = [pair for pair in sorted(pairs, reverse=True)[:5] if pair[0] >= 0.4]
        assert each["odds"].tolist() == pytest.approx([odds for odds, *_ in best])
        assert each["classes"].tolist() == [c for *_, c in best]
        assert torch.allclose(each["boxes"], edges(picture[[p for _, p, _ in best], :4]))


def test_what_is_suppressed_makes_room_for_others():
    box, other = [0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]
    answers = torch.tensor([[[*box, 3.0, -9.0], [*box, 2.0, 1.0], [*other, 0.0, -9.0]]])
    rows = found(answers, nms=0.5, most=3)[0]
    assert rows[:, 0].tolist() == [0, 1, 0]
    assert rows[:, 1].tolist() == pytest.approx([0.3, 0.3, 0.7])
    assert found(answers, nms=0.5, most=100, least=0.4).shape == (1, 6, 6)
    assert found(answers, nms=0.5, most=100, least=0.4)[0, 3:].tolist() == [[-1, 0, 0, 0, 0, 0]] * 3


def slow_hits(rows, labels, limit):
    """COCO's matching, a detection after the other."""
    taken, right = set(), []
    for kind, *box in rows:
        best, at = limit, None
        for j, (label, *other) in enumerate(labels):
            near = slow_overlap(*(edges(torch.tensor([x], dtype=torch.float64))[0].tolist() for x in (box, other)))[0]
            if j not in taken and label == kind >= 0 and near >= best:
                best, at = near, j
        taken.add(at)
        right.append(at is not None)
    return right


def test_hits_are_those_of_a_loop():
    kinds = lambda n, seed: torch.randint(-1, 2, (8, n, 1), generator=torch.Generator().manual_seed(seed)).double()  # noqa: E731
    labels = torch.cat([kinds(5, 0), boxes_of(8, 5)], -1)
    moved = labels[:, torch.arange(15) % 5] + 0.04 * torch.randn(8, 15, 5, generator=torch.Generator().manual_seed(1))
    rows = torch.cat([kinds(15, 2), moved[..., 1:]], -1)
    right = hits(rows, labels, (0.3, 0.5, 0.75))
    assert 0 < right[..., 2].sum() < right[..., 0].sum()
    for i in range(8):
        for t, limit in enumerate((0.3, 0.5, 0.75)):
            assert right[i, :, t].tolist() == slow_hits(rows[i].tolist(), labels[i].tolist(), limit)


def test_nothing_is_hit_where_there_is_nothing():
    rows = torch.tensor([[[-1.0, 0, 0, 0, 0, 0], [0, 0.5, 0.5, 1, 1, 0.9]]])
    assert not hits(rows, torch.full((1, 3, 5), -1.0), (0.5,)).any()
    assert not hits(rows, torch.zeros(1, 0, 5), (0.5,)).any()
