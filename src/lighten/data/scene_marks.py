"""Where the garments of a scene are seen: boxes around them, and the points at which they end."""

import torch
from torch import Tensor

from lighten.data.boxes import labels_of
from lighten.data.scene_layout import Layout

HIDDEN = 0.5
"""A garment of which more than this share is behind others has no box."""
POINTS = ("top", "bottom", "left", "right")
"""Names of the points of a garment."""


def boxes_of(layout: Layout, items: Tensor, areas: Tensor, labels: Tensor) -> Tensor:
    """Return labels float32 (scenes, items, 5): boxes tight around what is seen of each garment.

    Args:
        layout: of the scenes.
        items: as ``paint_items`` returns them.
        areas: likewise.
        labels: of the source images, int64 (N,).
    """
    size = items.shape[-1]
    found = torch.zeros(*areas.shape, 4)
    seen = torch.zeros_like(areas)
    for item in range(areas.shape[1]):
        there = items == item + 1
        seen[:, item] = there.flatten(1).sum(1)
        (left, right), (top, bottom) = (_ends(there.any(dim)) for dim in (1, 2))
        found[:, item] = torch.stack([left, top, right, bottom], 1) / size
    shown = (areas > 0) & (seen >= (1 - HIDDEN) * areas) & (seen > 0)
    classes = labels[torch.from_numpy(layout.sources)]
    return labels_of(torch.where(shown, classes, -1), found)


def points_of(items: Tensor) -> Tensor:
    """Return float32 (scenes, 4, 3): x, y and 1 of ``POINTS``, where the first garment ends.

    Where several pixels of a row (column) are at the end, the point is in their middle.

    Args:
        items: as ``paint_items`` returns them.
    """
    there = items == 1
    size = items.shape[-1]
    (left, right), (top, bottom) = (_ends(there.any(dim)) for dim in (1, 2))
    scene, centres = torch.arange(len(there)), torch.arange(size) + 0.5

    def middle(line: Tensor) -> Tensor:
        return (line * centres).sum(1) / line.sum(1)

    rows, columns = there, there.transpose(1, 2)
    at = [
        (middle(rows[scene, top]), top + 0.5),
        (middle(rows[scene, bottom - 1]), bottom - 0.5),
        (left + 0.5, middle(columns[scene, left])),
        (right - 0.5, middle(columns[scene, right - 1])),
    ]
    points = torch.stack([torch.stack([x, y], 1) for x, y in at], 1) / size
    return torch.cat([points, torch.ones(*points.shape[:2], 1)], 2)


def _ends(line: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first place of each row that is true, and that behind the last one; bool (N, size)."""
    values = line.to(torch.uint8)
    return values.argmax(1), line.shape[1] - values.flip(1).argmax(1)
