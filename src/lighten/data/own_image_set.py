"""OwnImageSet: whole batches of decoded images by (epoch, sample), with classes, numbers, masks or pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lighten.data.augmentation import Augmentation, Mixing, colours, cut_box, erased, geometry, mixing
from lighten.data.boxes import mirrored_boxes, moved
from lighten.data.decode import normalise
from lighten.data.decoded import Store
from lighten.training.order import Place
from lighten.utils.batch import KeyedBatch


@dataclass(frozen=True, kw_only=True)
class Answers:
    """How labels are made.

    Attributes:
        labels: of all samples, int64 (N,) or float32 (N, targets); ``None`` for masks and pictures.
        boxes: of all samples, float32 (N, most, 5), as ``lighten.data.boxes`` has them.
        classes: int64 (256,), the label of each value of a mask.
        mean: of target pictures, per channel, of values in [0, 1].
        std: likewise.
    """

    labels: Tensor | None = None
    boxes: Tensor | None = None
    classes: Tensor | None = None
    mean: Sequence[float] = ()
    std: Sequence[float] = ()


class OwnImageSet:
    """Batches of images float32 (N, C, H, W), normalised, with labels.

    Boxes are float32 (N, most, 5), masks become int64 (N, H, W), target pictures float32 (N, C, H, W), normalised.
    Augmentation depends on (seed, epoch, sample) alone. Where images are mixed, numbers, several labels and target
    pictures are mixed likewise; a class stays that of the larger part.

    Args:
        store: of decoded images.
        rows: of the store, one a sample.
        answers: how labels are made.
        mean: per channel, of values in [0, 1].
        std: likewise.
        augmentation: ``None`` leaves images as they are.
        views: different augmentations of a sample; ``None`` draws another one each epoch.
    """

    keyed = False

    def __init__(
        self, store: Store, rows: np.ndarray, answers: Answers, *, mean: Sequence[float], std: Sequence[float],
        augmentation: Augmentation | None = None, views: int | None = 1,
    ) -> None:  # fmt: skip
        self.store = store
        self.rows = rows
        self.answers = answers
        self.mean = mean
        self.std = std
        self.augmentation = augmentation
        self.views = views

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, sample: int) -> tuple[Tensor, Tensor]:
        """Return one image as in epoch 0, and its label."""
        images, labels = self.__getitems__([(0, sample)])[:2]
        return images[0], labels[0]

    def __getitems__(self, places: list[Place]) -> tuple[Tensor, ...]:
        """Return the batch of these (epoch, sample) pairs."""
        epochs, samples = np.array(places).T
        views = epochs if self.views is None else epochs % self.views
        how = self.augmentation
        if how is None or not how.mixup + how.cutmix:
            pixels, seconds = self._images(views, samples)
            batch = normalise(pixels, self.mean, self.std), self._labels(views, samples, seconds)
        else:
            batch = self._mixed(how, views, samples)
        if not self.keyed:
            return batch
        return KeyedBatch(*batch, torch.from_numpy(views * len(self) + samples))

    def _images(self, views: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return pixels, and masks or target pictures, augmented alike."""
        found = self.store.get(self.rows[samples])
        pixels, seconds = found["pixels"], found.get("seconds")
        how = self.augmentation
        if how is None:
            return pixels, seconds
        fill = np.round(255 * np.array(self.mean)).astype(np.uint8)
        drawn = how.draw(views, samples)
        each = [{name: float(values[row]) for name, values in drawn.items()} for row in range(len(samples))]
        pixels = np.stack(
            [
                erased(how, draws, colours(how, draws, geometry(how, draws, image)), fill)
                for draws, image in zip(each, pixels, strict=True)
            ]
        )
        if seconds is not None:
            nearest = seconds.ndim == 3
            seconds = np.stack(
                [geometry(how, draws, one, nearest=nearest) for draws, one in zip(each, seconds, strict=True)]
            )
        return pixels, seconds

    def _labels(self, views: np.ndarray, samples: np.ndarray, seconds: np.ndarray | None) -> Tensor:
        if self.answers.boxes is not None:
            return self._boxes(self.answers.boxes[torch.from_numpy(samples)], views, samples)
        if self.answers.labels is not None:
            return self.answers.labels[torch.from_numpy(samples)]
        assert seconds is not None
        if self.answers.classes is not None:
            return self.answers.classes[torch.from_numpy(seconds).long()]
        return normalise(seconds, self.answers.mean, self.answers.std)

    def _boxes(self, labels: Tensor, views: np.ndarray, samples: np.ndarray) -> Tensor:
        """Return labels of boxes that have moved as ``geometry`` moves their images."""
        how = self.augmentation
        if how is None:
            return labels
        drawn = how.draw(views, samples)
        if how.crop < 1:
            height, width = size = self.store.sources.frame.size
            places = []
            for row in range(len(samples)):
                left, top, right, bottom = cut_box(how, {key: float(of[row]) for key, of in drawn.items()}, size)
                wide, tall = right - left, bottom - top
                places.append((-left / wide, -top / tall, width / wide, height / tall))
            labels = moved(labels, torch.tensor(places))
        flipped = torch.from_numpy((drawn["flip"] < 1 / 2) & how.flip)
        return torch.where(flipped[:, None, None], mirrored_boxes(labels), labels)

    def _mixed(self, how: Augmentation, views: np.ndarray, samples: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return a batch in which some images are mixed with others of the data set."""
        drawn = how.draw(views, samples)
        plan = mixing(how, drawn, self.store.sources.frame.size)
        touched = np.flatnonzero(plan.mixed | plan.cut)
        partners = how.partners(views[touched], samples[touched], len(self))
        pixels, seconds = self._images(np.append(views, views[touched]), np.append(samples, partners))
        images = normalise(pixels, self.mean, self.std)
        labels = self._labels(np.append(views, views[touched]), np.append(samples, partners), seconds)
        count = len(samples)
        whole = labels.dtype == torch.int64 and labels.ndim == 1
        for other, row in enumerate(touched.tolist(), count):
            _mix(images, row, other, plan)
            if labels.ndim >= 3:
                _mix(labels, row, other, plan)
            elif not whole:
                labels[row].lerp_(labels[other], float(1 - plan.shares[row]))
        return images[:count], labels[:count]


def _mix(batch: Tensor, row: int, other: int, plan: Mixing) -> Any:
    """Mix one image, mask or picture into another in place."""
    if plan.cut[row]:
        top, left, bottom, right = plan.boxes[row].tolist()
        batch[row, ..., top:bottom, left:right] = batch[other, ..., top:bottom, left:right]
    else:
        batch[row].lerp_(batch[other], float(1 - plan.shares[row]))
