from dataclasses import replace

import numpy as np
import pytest
import torch

from lighten.data.scene_layout import VISIBLE, draw_layout, paint_items, resize
from lighten.data.scene_marks import HIDDEN, boxes_of, points_of


@pytest.fixture
def sources():
    """Noise with dark places and dark edges of any breadth."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(-100, 256, (20, 28, 28)).clip(0)
    for image, (top, left, bottom, right) in zip(pixels, draw.integers(0, 9, (20, 4)), strict=True):
        image[:top], image[28 - bottom :], image[:, :left], image[:, 28 - right :] = 0, 0, 0, 0
    return torch.from_numpy(pixels).to(torch.uint8)[:, None], torch.arange(20) % 10


def seen_pixels(layout, pixels, scene, size):
    """Pixel by pixel: the garment on top of each place, and how many pixels each has whole."""
    owner, whole = {}, []
    for item in range(layout.counts[scene]):
        top, left, side = (int(value) for value in layout.boxes[scene, item])
        garment = resize(pixels[layout.sources[scene, item], 0].float(), side)
        places = [(top + y, left + x) for y in range(side) for x in range(side) if garment[y, x] > VISIBLE]
        whole.append(len(places))
        owner.update(dict.fromkeys(places, item))
    return [[place for place, who in owner.items() if who == item] for item in range(len(whole))], whole


def test_boxes_are_tight_around_what_is_seen_and_hidden_garments_have_none(sources):
    pixels, labels = sources
    layout = draw_layout(0, 40, size=40, items=9, sources=20)
    crowd = np.concatenate([layout.boxes[..., :2] // 2, layout.boxes[..., 2:]], 2)
    layout = replace(layout, boxes=crowd)
    found = boxes_of(layout, *paint_items(layout, pixels, 40)[1:], labels)
    assert (found.shape, found.dtype) == ((40, 9, 5), torch.float32)
    hidden = 0
    for scene in range(40):
        seen, whole = seen_pixels(layout, pixels, scene, 40)
        for item in range(9):
            label = found[scene, item].tolist()
            if item >= len(seen) or len(seen[item]) < (1 - HIDDEN) * whole[item]:
                assert label == [-1, 0, 0, 0, 0]
                hidden += item < len(seen)
                continue
            rows, columns = zip(*seen[item], strict=True)
            corners = min(columns) / 40, min(rows) / 40, (max(columns) + 1) / 40, (max(rows) + 1) / 40
            centre = (corners[0] + corners[2]) / 2, (corners[1] + corners[3]) / 2
            expected = [
                int(labels[layout.sources[scene, item]]),
                *centre,
                corners[2] - corners[0],
                corners[3] - corners[1],
            ]
            assert label == pytest.approx(expected, abs=1e-6)
    assert 5 < hidden < 100


def test_points_are_where_a_garment_ends(sources):
    layout = draw_layout(0, 30, size=32, items=1, sources=20)
    found = points_of(paint_items(layout, sources[0], 32)[1])
    assert (found.shape, found.dtype) == ((30, 4, 3), torch.float32)
    for scene in range(30):
        ((*places,), *_), _ = seen_pixels(layout, sources[0], scene, 32)
        rows, columns = map(np.array, zip(*places, strict=True))
        top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
        expected = [
            (columns[rows == top].mean() + 0.5, top + 0.5), (columns[rows == bottom].mean() + 0.5, bottom + 0.5),
            (left + 0.5, rows[columns == left].mean() + 0.5), (right + 0.5, rows[columns == right].mean() + 0.5),
        ]  # fmt: skip
        assert found[scene, :, :2].numpy() == pytest.approx(np.array(expected) / 32, abs=1e-6)
        assert (found[scene, :, 2] == 1).all()
