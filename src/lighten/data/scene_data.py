"""SceneData: scenes in memory, with their masks, counts, boxes or points, or noise that is drawn batch by batch."""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lighten.data.boxes import mirrored_boxes, mirrored_points
from lighten.data.checks import check_at_least
from lighten.data.fashion_mnist import CLASSES, EMBEDDED, read_embedded
from lighten.data.loaders import SplitData
from lighten.data.scene_layout import draw_counts, draw_layout, paint, paint_items
from lighten.data.scene_marks import POINTS, boxes_of, points_of
from lighten.data.split import stratified
from lighten.errors import UserError
from lighten.tasks import build_task
from lighten.tasks.task import Task
from lighten.training.order import Place, draw, draw_below
from lighten.utils.batch import KeyedBatch

PARTS = TRAIN, VALIDATION, TEST = range(3)
HELD_OUT = 1500
"""Source images of the training part that validation scenes alone show."""
MEAN = (0.26,)
STD = (0.20,)
"""Of the scenes with the default options, rounded; other options change them little."""

_FLIP, _NOISE = 1, 2
_SEED = 1
"""Of the noise of validation and test pictures, which is that of every run."""
_BYTES_MEAN, _BYTES_STD = 8 * 255 / 2, (8 * (256**2 - 1) / 12) ** 0.5
"""Of the sum of eight uniform bytes."""


class SceneSet:
    """Whole batches by (epoch, sample): scenes normalised to float32 (N, 1, H, W), and what is asked of them.

    The flip and the noise depend on (seed, epoch, sample) alone. With ``views`` they repeat: epoch e shows view
    e % ``views``.

    Args:
        pictures: uint8 (N, 1, H, W).
        answers: uint8 (N, H, W), masks; float32 (N, targets), numbers, or boxes or points; ``None``: the picture
            itself.
        noise: standard deviation, for values in [0, 1].
        seed: of flip and noise; ``None`` is that of validation and test, where an epoch is like another.
        flip: every second time.
        mirror: of answers, what they become when their pictures are flipped; ``None`` leaves them.
        views: different ones of a sample; ``None`` draws another one each epoch.
        keyed: batches are a ``KeyedBatch``, with keys int64 (batch,): view * N + sample.
    """

    def __init__(
        self,
        pictures: Tensor,
        answers: Tensor | None,
        *,
        noise: float = 0.0,
        seed: int | None = None,
        flip: bool = False,
        mirror: Callable[[Tensor], Tensor] | None = None,
        views: int | None = 1,
        keyed: bool = False,
    ) -> None:
        self.pictures = pictures
        self.answers = answers
        self.noise = noise
        self.seed = _SEED if seed is None else seed
        self.flip = flip
        self.mirror = mirror
        self.views = views
        self.keyed = keyed

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, sample: int) -> tuple[Tensor, Tensor]:
        """Return one scene (1, H, W) as in epoch 0 and its answer."""
        scenes, answers = self.__getitems__([(0, sample)])[:2]
        return scenes[0], answers[0]

    def __getitems__(self, places: list[Place]) -> tuple[Tensor, ...]:
        """Return the batch of these (epoch, sample) pairs."""
        epochs, samples = np.array(places).T
        views = epochs if self.views is None else epochs % self.views
        chosen = torch.from_numpy(samples)
        scenes = self.pictures[chosen]
        answers = scenes if self.answers is None else self.answers[chosen]
        if self.flip:
            flipped = torch.from_numpy(draw_below(2, self.seed, views, samples, stream=_FLIP)).bool()
            scenes = torch.where(flipped[:, None, None, None], scenes.flip(3), scenes)
            if self.answers is None:
                answers = scenes
            elif self.mirror is not None:
                chosen = flipped.view(-1, *[1] * (answers.ndim - 1))
                answers = torch.where(chosen, self.mirror(answers), answers)
        if self.noise:
            scenes = add_noise(scenes, self.noise, self.seed, views, samples)
        if self.answers is None:
            answers = _normalised(answers)
        elif answers.dtype == torch.uint8:
            answers = answers.long()
        batch = _normalised(scenes), answers
        return KeyedBatch(*batch, torch.from_numpy(views * len(self) + samples)) if self.keyed else batch


def add_noise(pictures: Tensor, std: float, seed: int, views: np.ndarray, samples: np.ndarray) -> Tensor:
    """Return pictures with noise, as a file would hold them: rounded to bytes, and cut off at black and white.

    A pixel's noise is the sum of eight random bytes, scaled: nearly normal, and the same bits on every machine.

    Args:
        pictures: uint8 (N, C, H, W).
        std: for values in [0, 1].
        seed: of the noise.
        views: (N,), its second coordinate.
        samples: (N,), its third.
    """
    streams = _NOISE + np.arange(pictures[0].numel(), dtype=np.uint64)
    bits = draw(seed, views[:, None], samples[:, None], stream=streams)
    sums = bits.view(np.uint8).reshape(*bits.shape, 8).sum(-1, dtype=np.int64)
    change = torch.from_numpy(np.rint((sums - _BYTES_MEAN) * (255 * std / _BYTES_STD))).view(pictures.shape)
    return (pictures + change).clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=len(PARTS))
def painted(part: int, scenes: int, size: int, items: int) -> tuple[Tensor, Tensor]:
    """Return pictures uint8 (scenes, 1, ``size``, ``size``) and masks uint8 (scenes, ``size``, ``size``) of a part.

    Raises:
        UserError: if the embedded images cannot be read.
    """
    pixels, labels = sources_of(part)
    layout = draw_layout(part, scenes, size=size, items=items, sources=len(labels))
    return paint(layout, pixels, labels, size)


@lru_cache(maxsize=len(PARTS))
def marked(part: int, scenes: int, size: int, items: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return pictures as ``painted`` does, boxes (``boxes_of``) and points (``points_of``) of a part.

    Raises:
        UserError: if the embedded images cannot be read.
    """
    pixels, labels = sources_of(part)
    layout = draw_layout(part, scenes, size=size, items=items, sources=len(labels))
    pictures, seen, areas = paint_items(layout, pixels, size)
    return pictures, boxes_of(layout, seen, areas, labels), points_of(seen)


def sources_of(part: int) -> tuple[Tensor, Tensor]:
    """Return the images uint8 (N, 1, 28, 28), and their labels, that scenes of this part alone show.

    Raises:
        UserError: if the embedded images cannot be read.
    """
    images = read_embedded()
    if part == TEST:
        return images.test, images.test_labels
    kept = stratified(images.train_labels, HELD_OUT)[part]
    return images.train[kept], images.train_labels[kept]


class SceneData(SplitData):
    """Scenes of garments, painted when they are first needed.

    Args:
        answer: ``"mask"``, ``"count"``, ``"picture"``, ``"boxes"`` or ``"keypoints"``.
        scenes: of the training part.
        validation: scenes of the validation part.
        test: scenes of the test part.
        size: pixels a side.
        items: garments of a scene at most.
        noise: standard deviation, for values in [0, 1].
        detection: settings of that task.
        batch_size: samples of one process.
        seed: of order, flip and the training pictures' noise.
        workers: processes that fetch batches ahead.
        augment: flip training scenes.
        views: different ones of a training scene; ``None`` draws another one each epoch.

    Attributes:
        task: what is answered; numbers are standardised by the mean and spread of the training counts.
        keyed: set it to have keys in training batches, one number for each view of each scene.
        views: of a training scene; 1 where neither flip nor noise changes, ``None`` for another one each epoch.

    Raises:
        UserError: if ``batch_size``, ``validation`` or ``views`` is below 1, ``workers`` below 0, ``views`` has no
            effect, or all training counts are alike.
    """

    mean = MEAN
    std = STD
    licence = "scenes of Fashion-MNIST: MIT, Copyright (c) 2017 Zalando SE, https://tech.zalando.com"

    def __init__(
        self, answer: str, *, scenes: int, validation: int, test: int, size: int, items: int, noise: float,
        detection: Mapping[str, Any], batch_size: int, seed: int, workers: int, augment: bool, views: int | None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_at_least(0, workers=workers)
        check_at_least(1, batch_size=batch_size, validation=validation, views=1 if views is None else views)
        changing = augment or noise > 0
        if not changing and views not in (None, 1):
            raise UserError(f"views={views} with augment=False: there is one view; leave views out, or set augment")
        self.answer = answer
        self.numbers = {TRAIN: scenes, VALIDATION: validation, TEST: test}
        self.size = size
        self.items = items
        self.noise = noise
        self.batch_size = batch_size
        self.seed = seed
        self.workers = workers
        self.validation = validation
        self.augment = augment
        self.views = views if changing else 1
        self.options = {}
        names = {
            "mask": ("background", *CLASSES), "count": ("garments",), "picture": ("grey",), "boxes": CLASSES,
            "keypoints": POINTS,
        }  # fmt: skip
        self.class_names: tuple[str, ...] = names[answer]
        self.num_classes = len(self.class_names)
        self.input_shape = (1, size, size)
        self.train_samples = scenes
        self.task = _task(answer, scenes, items, detection)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the source images and of the options that change what a model sees."""
        seen = {
            "content": EMBEDDED.sha256, "answer": self.answer, "scenes": list(self.numbers.values()), "size": self.size,
            "items": self.items, "noise": self.noise, "augment": self.augment, "views": self.views,
        }  # fmt: skip
        return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()

    def preprocessing(self) -> dict[str, Any]:
        """Return how a picture of a stranger becomes an input as in evaluation, in JSON types."""
        return {
            "kind": "images", "size": [self.size, self.size], "resize": "crop", "channels": 1, "white": 65535,
            "mean": list(MEAN), "std": list(STD),
        }  # fmt: skip

    def prepare_data(self) -> None:
        """Read the source images, so that a missing file is reported before any worker starts."""
        read_embedded()

    def setup(self, stage: str) -> None:
        """Paint the scenes of all parts; the same for every stage."""
        self.train_set = self._part(TRAIN, seed=self.seed, flip=self.augment, views=self.views)
        self.val_set = self._part(VALIDATION)
        self.test_set = self._part(TEST)

    def _part(self, part: int, **changes: Any) -> SceneSet:
        scenes = self.numbers[part]
        if self.answer in ("boxes", "keypoints"):
            pictures, boxes, points = marked(part, scenes, self.size, self.items)
            if self.answer == "boxes":
                return SceneSet(pictures, boxes, mirror=mirrored_boxes, **changes)
            return SceneSet(pictures, points, mirror=_mirrored_points, **changes)
        pictures, masks = painted(part, scenes, self.size, self.items)
        answers: Tensor | None = masks if self.answer == "mask" else None
        if self.answer == "count":
            task: Any = self.task
            counts = torch.from_numpy(draw_counts(part, scenes, self.items))[:, None]
            answers = ((counts - task.mean[0]) / task.std[0]).float()
        mirror = _mirrored_masks if self.answer == "mask" else None
        return SceneSet(pictures, answers, noise=self.noise, mirror=mirror, **changes)


def _mirrored_masks(masks: Tensor) -> Tensor:
    return masks.flip(2)


def _mirrored_points(points: Tensor) -> Tensor:
    return mirrored_points(points, POINTS.index("left"), POINTS.index("right"))


def _task(answer: str, scenes: int, items: int, detection: Mapping[str, Any]) -> Task:
    if answer == "boxes":
        return build_task("detection", **detection)
    if answer == "keypoints":
        return build_task("keypoints")
    if answer == "mask":
        return build_task("segmentation")
    if answer == "picture":
        return build_task("image", mean=MEAN, std=STD, data_range=1.0)
    counts = draw_counts(TRAIN, scenes, items)
    spread = float(counts.std())
    if spread == 0:
        raise UserError(
            f"data scenes: every training scene has {counts[0]} garments, expected counts that differ; ask for more "
            "scenes"
        )
    return build_task("regression", mean=(float(counts.mean()),), std=(spread,), unit="garments")


def _normalised(pictures: Tensor) -> Tensor:
    mean, std = (255 * torch.tensor(of).view(-1, 1, 1) for of in (MEAN, STD))
    return pictures.float().sub_(mean).div_(std)
