import numpy as np
import pytest
import torch

from lighten.data.scene_layout import BRIGHTEST, EDGE, VISIBLE, draw_counts, draw_layout, paint, resize


@pytest.fixture
def sources():
    """Noise with dark places, so that garments have holes."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(-100, 256, (20, 1, EDGE, EDGE), generator=draw).clamp(0).to(torch.uint8)
    return pixels, torch.arange(20) % 10


def resized(image, side):
    """Pixel by pixel: the mean over the source pixels that each covers, weighted by how much of them it covers."""
    out = np.zeros((side, side), np.uint8)
    for y in range(side):
        for x in range(side):
            total = 0
            for v in range(y * EDGE // side, -(-(y + 1) * EDGE // side)):
                for u in range(x * EDGE // side, -(-(x + 1) * EDGE // side)):
                    tall = min((y + 1) * EDGE, (v + 1) * side) - max(y * EDGE, v * side)
                    wide = min((x + 1) * EDGE, (u + 1) * side) - max(x * EDGE, u * side)
                    total += int(image[v, u]) * tall * wide
            out[y, x] = (2 * total + EDGE**2) // (2 * EDGE**2)  # halves go up
    return out


@pytest.mark.parametrize("side", [1, 5, 14, 19, 28, 37, 56])
def test_resized_pixels_are_means_of_areas(sources, side):
    image = sources[0][3, 0]
    assert np.array_equal(resize(image.float(), side).numpy(), resized(image.numpy(), side))


def test_a_source_of_its_own_size_and_one_twice_as_large():
    image = torch.randint(0, 256, (EDGE, EDGE), generator=torch.Generator().manual_seed(1)).float()
    assert torch.equal(resize(image, EDGE), image.to(torch.uint8))
    assert torch.equal(resize(image, 2 * EDGE), image.repeat_interleave(2, 0).repeat_interleave(2, 1).to(torch.uint8))
    assert (resize(torch.full((EDGE, EDGE), 255.0), 300) == 255).all()


def painted_reference(layout, pixels, labels, size):
    """Scene by scene, pixel by pixel: the background, then each garment where it is bright enough."""
    pictures, masks = [], []
    for scene, count in enumerate(layout.counts):
        top_left, top_right, bottom_left, bottom_right = map(int, layout.corners[scene])
        picture, mask, last = np.zeros((size, size), int), np.zeros((size, size), int), size - 1
        for y in range(size):
            for x in range(size):
                top = top_left * (last - x) + top_right * x
                bottom = bottom_left * (last - x) + bottom_right * x
                picture[y, x] = (top * (last - y) + bottom * y) // last**2
        for item in range(count):
            source, (top, left, side) = layout.sources[scene, item], layout.boxes[scene, item]
            garment = resized(pixels[source, 0].numpy(), side)
            for y in range(side):
                for x in range(side):
                    if garment[y, x] > VISIBLE:
                        picture[top + y, left + x] = garment[y, x]
                        mask[top + y, left + x] = 1 + int(labels[source])
        pictures.append(picture)
        masks.append(mask)
    return np.stack(pictures), np.stack(masks)


def test_scenes_are_painted_as_by_a_loop_over_their_pixels(sources):
    layout = draw_layout(1, 6, size=40, items=5, sources=20)
    pictures, masks = paint(layout, *sources, 40)
    expected, classes = painted_reference(layout, *sources, 40)
    assert (pictures.shape, pictures.dtype, masks.dtype) == ((6, 1, 40, 40), torch.uint8, torch.uint8)
    assert np.array_equal(pictures[:, 0].numpy(), expected)
    assert np.array_equal(masks.numpy(), classes)
    assert len(np.unique(classes)) > 5


@pytest.mark.parametrize(("size", "items"), [(64, 6), (32, 1), (96, 16), (50, 7)])
def test_garments_lie_on_the_canvas_apart_from_each_other(size, items):
    layout = draw_layout(0, 400, size=size, items=items, sources=50)
    top, left, side = np.moveaxis(layout.boxes, 2, 0)
    assert min(top.min(), left.min(), layout.sources.min(), layout.corners.min()) >= 0
    assert max((top + side).max(), (left + side).max()) <= size
    assert (layout.sources.max(), layout.corners.max()) == (49, BRIGHTEST - 1)
    cell = size // int(np.ceil(items**0.5))
    assert (side.min(), side.max()) == (3 * cell // 4, min(4 * cell // 3, size))
    whole = torch.full((50, 1, EDGE, EDGE), 255, dtype=torch.uint8)
    # every source has a class of its own, so a garment can be told from those over it
    seen = paint(layout, whole, torch.arange(50), size)[1]
    for scene, count in enumerate(layout.counts):
        assert set(layout.sources[scene, :count] + 1) == set(seen[scene].unique().tolist()) - {0}


def test_counts_are_as_likely_as_each_other_and_those_of_the_layout():
    counts = draw_counts(0, 6000, 6)
    assert (np.abs(np.bincount(counts)[1:] - 1000) < 120).all()
    assert np.bincount(counts)[0] == 0
    assert np.array_equal(counts, draw_layout(0, 6000, size=64, items=6, sources=9).counts)


def test_a_scene_depends_on_its_part_and_number_alone():
    few, many = (draw_layout(0, scenes, size=64, items=6, sources=99) for scenes in (10, 50))
    other = draw_layout(1, 50, size=64, items=6, sources=99)
    for name in ("counts", "sources", "boxes", "corners"):
        assert np.array_equal(getattr(few, name), getattr(many, name)[:10])
        assert (getattr(many, name) == getattr(other, name)).mean() < 0.3
