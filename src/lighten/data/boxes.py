"""Labels of boxes and of points, and what becomes of them when their picture is moved.

A label of a box is class, centre x, centre y, width and height, in shares of a picture; a row without a box has class
-1 and zeros. One of a point is x, y in shares, and 1 where the point is there, else 0 (and zeros).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

NONE = -1
"""Class of a row without a box."""
LEFT = 0.25
"""Share of a box's area that must be left where its picture is cut; else the box goes."""


def labels_of(classes: Tensor, corners: Tensor) -> Tensor:
    """Return labels float32 (…, 5).

    Args:
        classes: (…,), ``NONE`` where there is no box.
        corners: left, top, right and bottom in shares, (…, 4).
    """
    first, last = corners[..., :2].float(), corners[..., 2:].float()
    labels = torch.cat([classes[..., None].float(), (first + last) / 2, last - first], -1)
    nothing = torch.tensor([NONE, 0.0, 0.0, 0.0, 0.0])
    return torch.where((classes > NONE)[..., None], labels, nothing)


def padded(boxes: Sequence[np.ndarray]) -> Tensor:
    """Return labels float32 (N, most, 5) of N pictures, as many rows as the one with most boxes has.

    Args:
        boxes: of each, (n, 5): class, left, top, right and bottom in shares.
    """
    rows = np.zeros((len(boxes), max(1, *map(len, boxes)) if len(boxes) else 1, 5))
    rows[..., 0] = NONE
    for row, found in zip(rows, boxes, strict=True):
        row[: len(found)] = found
    return labels_of(torch.from_numpy(rows[..., 0]), torch.from_numpy(rows[..., 1:]))


def moved(labels: Tensor, places: Tensor) -> Tensor:
    """Return labels (N, most, 5) of other pictures, which show the old ones cut or smaller.

    What is outside is cut off; a box of which less than ``LEFT`` of its area is left goes.

    Args:
        labels: in shares of the old pictures.
        places: (N, 4), where each old picture lies in the new one: left, top, width and height in shares of that.
    """
    first, scale = (part[:, None].to(labels) for part in (places[:, :2], places[:, 2:]))
    centres, sides = labels[..., 1:3] * scale + first, labels[..., 3:] * scale
    corners = torch.cat([centres - sides / 2, centres + sides / 2], -1).clamp(0, 1)
    left = (corners[..., 2:] - corners[..., :2]).prod(-1)
    stays = left >= LEFT * sides.prod(-1)
    return labels_of(torch.where(stays, labels[..., 0], NONE), corners)


def mirrored_boxes(labels: Tensor) -> Tensor:
    """Return labels (…, 5) of pictures that are flipped left to right."""
    labels = labels.clone()
    labels[..., 1] = torch.where(labels[..., 0] > NONE, 1 - labels[..., 1], labels[..., 1])
    return labels


def mirrored_points(points: Tensor, left: int, right: int) -> Tensor:
    """Return points (…, points, 3) of pictures that are flipped left to right.

    Args:
        points: x, y and whether it is there.
        left: number of a point that becomes the one at ``right``.
        right: and the other way round.
    """
    order = list(range(points.shape[-2]))
    order[left], order[right] = right, left
    points = points[..., order, :].clone()
    points[..., 0] = torch.where(points[..., 2] > 0, 1 - points[..., 0], points[..., 0])
    return points
