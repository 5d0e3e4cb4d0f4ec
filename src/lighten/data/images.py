"""ImageData: small images in memory, with splits, light augmentation and whole batches at a time."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lighten.data.checks import check_at_least
from lighten.data.loaders import SplitData, check_validation
from lighten.data.split import stratified
from lighten.errors import UserError
from lighten.training.order import Place, draw_below
from lighten.utils.batch import KeyedBatch


@dataclass(frozen=True)
class Images:
    """Pixels uint8 (N, C, H, W) and labels int64 (N,), for training and for test."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Facts:
    """What is known of a data set before it is read; ``mean`` and ``std`` are per channel, for values in [0, 1]."""

    class_names: tuple[str, ...]
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    shift: int


class ImageSet:
    """Whole batches by (epoch, sample), normalised to float32 (N, C, H, W), with int64 labels.

    Augmentation depends on (seed, epoch, sample) alone: a shift by up to ``shift`` pixels each way with zeros (black)
    coming in, and a horizontal flip every second time. With ``views`` it repeats: epoch e shows view e % ``views``.

    Args:
        pixels: uint8 (N, C, H, W).
        labels: int64 (N,).
        mean: per channel, of values in [0, 1].
        std: likewise.
        seed: of the augmentation; ``None`` leaves images as they are.
        shift: pixels.
        views: different augmentations of a sample; ``None`` draws another one each epoch.
        keyed: batches are a ``KeyedBatch``, with keys int64 (batch,): view * N + sample.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int | None = None,
        shift: int = 2,
        views: int | None = None,
        keyed: bool = False,
    ) -> None:
        self.pixels = pixels
        self.labels = labels
        self.seed = seed
        self.shift = shift
        self.views = views
        self.keyed = keyed
        self._mean = 255 * torch.tensor(mean).view(-1, 1, 1)
        self._std = 255 * torch.tensor(std).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, sample: int) -> tuple[Tensor, Tensor]:
        """Return one image (C, H, W) as in epoch 0 and its label."""
        images, labels = self.__getitems__([(0, sample)])[:2]
        return images[0], labels[0]

    def __getitems__(self, places: list[Place]) -> tuple[Tensor, ...]:
        """Return the batch of these (epoch, sample) pairs."""
        epochs, samples = np.array(places).T
        views = epochs if self.views is None else epochs % self.views
        chosen = torch.from_numpy(samples)
        pixels = self.pixels[chosen]
        if self.seed is not None:
            pixels = augment(pixels, *draw_augmentation(self.seed, views, samples, shift=self.shift))
        batch = pixels.float().sub_(self._mean).div_(self._std), self.labels[chosen]
        if not self.keyed:
            return batch
        return KeyedBatch(*batch, torch.from_numpy(views * len(self) + samples))


def draw_augmentation(
    seed: int, epochs: np.ndarray, samples: np.ndarray, *, shift: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows and columns to shift by, in [-``shift``, ``shift``], and whether to flip; one each per sample."""
    down, right, flip = (
        torch.from_numpy(draw_below(limit, seed, epochs, samples, stream=stream))
        for stream, limit in enumerate((2 * shift + 1, 2 * shift + 1, 2), 1)
    )
    return down - shift, right - shift, flip.bool()


def augment(pixels: Tensor, down: Tensor, right: Tensor, flip: Tensor) -> Tensor:
    """Shift each image, with zeros coming in, then flip it left to right where ``flip``.

    Args:
        pixels: (N, C, H, W).
        down: int64 (N,), rows; negative is up.
        right: int64 (N,), columns; negative is left.
        flip: bool (N,).
    """
    height, width = pixels.shape[2:]
    pad = int(torch.stack([down, right]).abs().max()) if len(pixels) else 0
    windows = F.pad(pixels, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)
    moved = windows[torch.arange(len(pixels)), :, pad - down, pad - right]
    return torch.where(flip[:, None, None, None], moved.flip(3), moved)


class ImageData(SplitData):
    """An image data set with a validation split taken out of its training part.

    Args:
        facts: what is known without reading.
        read: reads the images; called once, when they are first needed.
        content: hexadecimal digest of the images where it is known without reading them.
        batch_size: samples of one process.
        seed: of order and augmentation.
        workers: processes that fetch batches ahead; 0 is fine for images in memory.
        validation: samples taken out of the training part, stratified, the same for every seed.
        augment: shift and flip training images.
        views: different augmentations of a training image, taken in turn, one an epoch; ``None`` draws another one
            each epoch. A teacher's outputs for a few views can be kept.

    Attributes:
        keyed: set it to have keys in training batches, one number for each view of each sample.
        views: of a training image; 1 without augmentation, ``None`` for another one each epoch.

    Raises:
        UserError: if ``batch_size`` or ``views`` is below 1, ``workers`` or ``validation`` below 0, or ``views`` has
            no effect.
    """

    task: str = "classification"

    def __init__(
        self,
        facts: Facts,
        read: Callable[[], Images],
        *,
        content: str | None = None,
        batch_size: int,
        seed: int,
        workers: int,
        validation: int,
        augment: bool,
        views: int | None = None,
    ) -> None:
        super().__init__()
        check_at_least(0, workers=workers)
        check_at_least(1, batch_size=batch_size, validation=validation, views=1 if views is None else views)
        if not augment and views not in (None, 1):
            raise UserError(f"views={views} with augment=False: there is one view; leave views out, or set augment")
        self.class_names = facts.class_names
        self.num_classes = len(facts.class_names)
        self.input_shape = facts.input_shape
        self.mean = facts.mean
        self.std = facts.std
        self.licence = facts.licence
        self.batch_size = batch_size
        self.seed = seed
        self.workers = workers
        self.validation = validation
        self.augment = augment
        self.views = views if augment else 1
        self.options = {}
        self._facts = facts
        self._read = read
        self._content = content

    @cached_property
    def images(self) -> Images:
        """All images; read when first asked for.

        Raises:
            UserError: if they cannot be read, have another shape, or do not fit their labels.
        """
        images = self._read()
        parts = {"training": (images.train, images.train_labels), "test": (images.test, images.test_labels)}
        for part, (pixels, labels) in parts.items():
            where = f"data {self.name}, {part} part"
            if tuple(pixels.shape[1:]) != self.input_shape:
                raise UserError(f"{where}: images are {tuple(pixels.shape[1:])}, expected {self.input_shape}")
            if len(pixels) != len(labels) or not len(labels):
                raise UserError(f"{where}: {len(pixels)} images and {len(labels)} labels, expected as many")
            if not 0 <= labels.min() <= labels.max() < self.num_classes:
                raise UserError(
                    f"{where}: labels from {labels.min()} to {labels.max()}, expected 0 to {self.num_classes - 1}"
                )
        return images

    @property
    def train_samples(self) -> int:
        """Samples of the training part, without those held out; known after ``setup``."""
        return len(self.train_set)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the images and of the options that change what a model sees."""
        content = self._content or _digest(self.images)
        seen = {"content": content, "validation": self.validation, "augment": self.augment}
        if self.augment and self.views is not None:
            seen["views"] = self.views
        return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()

    def prepare_data(self) -> None:
        """Read the images, so that a missing file is reported before any worker starts."""
        _ = self.images

    def setup(self, stage: str) -> None:
        """Split the training part; the same for every stage."""
        images = self.images
        check_validation(self, len(images.train))
        rest, held_out = stratified(images.train_labels, self.validation)
        statistics: dict[str, Any] = {"mean": self.mean, "std": self.std}
        self.train_set = ImageSet(
            images.train[rest],
            images.train_labels[rest],
            seed=self.seed if self.augment else None,
            shift=self._facts.shift,
            views=self.views,
            **statistics,
        )
        self.val_set = ImageSet(images.train[held_out], images.train_labels[held_out], **statistics)
        self.test_set = ImageSet(images.test, images.test_labels, **statistics)


def _digest(images: Images) -> str:
    digest = hashlib.sha256()
    for tensor in (images.train, images.train_labels, images.test, images.test_labels):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
