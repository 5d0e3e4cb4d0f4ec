"""Scenes: Fashion-MNIST's garments on a canvas, to be masked, counted, found, or cleaned of noise; no download."""

import math
from typing import TYPE_CHECKING

from lighten.data.checks import check_at_least
from lighten.data.registry import register_data
from lighten.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from lighten.data.scene_data import SceneData

ANSWERS = ("mask", "count", "picture", "boxes", "keypoints")
LARGEST = 1024
"""Pixels a side of a canvas."""
SMALLEST_CELL = 8
"""Pixels a side of the part of the canvas that one garment has."""
NOISE = 0.2
ITEMS = 6


@register_data("scenes")
def scenes(
    *,
    batch_size: int,
    seed: int,
    workers: int,
    answer: str = "mask",
    scenes: int = 4000,
    validation: int = 400,
    test: int = 800,
    size: int = 64,
    items: int | None = None,
    noise: float | None = None,
    matches: int | None = None,
    nms: float | None = None,
    augment: bool = True,
    views: int | None = None,
) -> "SceneData":
    """Build the data module of scenes, the same in every run; its parts share no source image.

    Args:
        batch_size: samples of one process.
        seed: of order, augmentation and the training pictures' noise.
        workers: processes that fetch batches ahead.
        answer: ``mask``, the class of each pixel (0 is the background, then ten garments); ``count``, how many garments
            there are; ``picture``, the scene without the noise that is added to the input; ``boxes``, a box tight
            around what is seen of each garment, unless more than half of it is behind others; or
            ``keypoints``, the points at which one garment ends: top, bottom, left and right.
        scenes: of the training part.
        validation: scenes of the validation part.
        test: scenes of the test part.
        size: pixels a side.
        items: garments of a scene at most, at least one; 6 unless given, and always 1 with ``keypoints``.
        noise: of ``picture``, its standard deviation, for values in [0, 1]; 0.2 unless given.
        matches: of ``boxes``, setting of task ``detection``: places of the answer that learn each box; 1 unless given.
        nms: of ``boxes``, likewise: the overlap from which on the weaker of two boxes of a class goes.
        augment: flip training scenes left to right every second time.
        views: different flips and noises of a training scene, one an epoch in turn; ``None`` draws another one each
            epoch.

    Raises:
        UserError: if an option is out of range or has no effect.
    """
    from lighten.data.scene_data import SceneData

    if answer not in ANSWERS:
        raise UserError(f"data scenes: answer={answer!r}; {did_you_mean(str(answer), ANSWERS)}")
    if noise is not None and answer != "picture":
        raise UserError(f"data scenes: noise={noise} with answer={answer!r}; noise belongs to answer: picture")
    if noise is not None and not 0 < noise <= 1:
        raise UserError(f"data scenes: noise={noise}, expected a number above 0, at most 1")
    detection = {key: value for key, value in (("matches", matches), ("nms", nms)) if value is not None}
    if detection and answer != "boxes":
        raise UserError(f"data scenes: {next(iter(detection))} with answer={answer!r}; it belongs to answer: boxes")
    if items is None:
        items = 1 if answer == "keypoints" else ITEMS
    elif answer == "keypoints" and items != 1:
        raise UserError(
            f"data scenes: items={items} with answer='keypoints', which are of one garment; leave items out"
        )
    check_at_least(2 if answer == "count" else 1, items=items)
    check_at_least(1, size=size, scenes=scenes, test=test)
    if size > LARGEST:
        raise UserError(f"data scenes: size={size}, expected at most {LARGEST}")
    smallest = SMALLEST_CELL * math.ceil(math.sqrt(items))
    if size < smallest:
        raise UserError(f"data scenes: size={size} is too small for items={items}, expected at least {smallest}")
    return SceneData(
        answer, scenes=scenes, validation=validation, test=test, size=size, items=items,
        noise=(NOISE if noise is None else float(noise)) if answer == "picture" else 0.0,
        detection=detection, batch_size=batch_size, seed=seed, workers=workers, augment=augment, views=views,
    )  # fmt: skip
