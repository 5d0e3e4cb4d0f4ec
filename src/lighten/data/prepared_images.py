"""Images of one's own, prepared: found, decoded once, split and summed up; each step when it is first asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lighten.data.boxes import moved, padded
from lighten.data.decode import GREY, Frame, placed
from lighten.data.decoded import Facts, Sources, Store, read_all
from lighten.data.find_images import TEST, TRAIN, VALIDATION, Found
from lighten.data.frame import Looks, choose_frames
from lighten.data.image_checks import check_classes, check_sizes, mask_classes, usable_rows, warn_of_copies
from lighten.data.shares import share_out
from lighten.data.tokens import cache_folder
from lighten.errors import UserError
from lighten.tasks import build_task
from lighten.tasks.task import Task

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and deviation per channel, of values in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What is asked for of images of one's own.

    Attributes:
        task: that the images are asserted to be for; ``None``: the one that is found.
        test: share of the images, or of their groups, in (0, 1).
        validation: likewise.
        skip_broken: share of the images that may be unreadable.
        classes: names of the classes.
        mask_values: value of each class in masks.
        unit: of the numbers of a regression.
        detection: settings of that task.
        cache: where decoded images are kept, one of ``lighten.data.decoded.CACHES``.

    Raises:
        UserError: if a value is out of range.
    """

    task: str | None = None
    test: float = 0.15
    validation: float = 0.15
    skip_broken: float = 0.01
    classes: tuple[str, ...] | None = None
    mask_values: Sequence[int] | None = None
    unit: str = ""
    detection: Mapping[str, Any] = field(default_factory=dict)
    cache: str = "auto"

    def __post_init__(self) -> None:
        if not (self.test > 0 and self.validation > 0 and self.test + self.validation < 1):
            raise UserError(
                f"test={self.test} and validation={self.validation}, expected shares above 0 that leave a training part"
            )
        if not 0 <= self.skip_broken < 1:
            raise UserError(f"skip_broken={self.skip_broken}, expected a share of the images from 0, below 1")
        values = self.mask_values
        if values is None:
            return
        if not all(isinstance(v, int) and 0 <= v <= 255 for v in values) or len(set(values)) != len(values):
            raise UserError(f"mask_values={list(values)}, expected different whole numbers from 0 to 255")
        if self.classes is not None and len(self.classes) != len(values):
            raise UserError(f"{len(self.classes)} classes and {len(values)} mask_values, expected as many")


class PreparedImages:
    """What is known of images of one's own.

    Args:
        find: finds the images.
        looks: size and channels.
        wishes: what else is asked for.
    """

    def __init__(self, find: Callable[[], Found], looks: Looks, wishes: Wishes) -> None:
        if wishes.mask_values is not None and 255 in wishes.mask_values and looks.resize == "pad":
            raise UserError("resize=pad fills masks with 255, which mask_values has as a class; set crop or stretch")
        self._find = find
        self._looks = looks
        self._wishes = wishes

    @cached_property
    def found(self) -> Found:
        """The images and what they are for; files are named, not read.

        Raises:
            UserError: if there are none, or what is there is for another task than was asked for.
        """
        found = self._find()
        if self._wishes.task not in (None, found.task):
            raise UserError(
                f"task={self._wishes.task}, and {found.where} is for {found.task} ({found.why}); leave task out, or "
                "give masks, targets or a table"
            )
        if found.task == "classification" and found.parts is None:
            assert found.labels is not None
            check_classes(found.labels, found.class_names, found.where)
        return found

    @cached_property
    def frames(self) -> tuple[Frame, Frame | None]:
        """What every image is brought to, and every mask or target picture."""
        return choose_frames(self.found, self._looks)

    @cached_property
    def _read(self) -> tuple[Facts, Store]:
        sources = Sources(self.found.files, self.frames[0], self.found.seconds, self.frames[1])
        return read_all(sources, self._wishes.cache, cache_folder().with_name("images"))

    @property
    def digests(self) -> list[str]:
        """SHA-256 (hex) of each file."""
        return self._read[0].digests

    @property
    def store(self) -> Store:
        """The decoded images."""
        return self._read[1]

    @cached_property
    def rows(self) -> np.ndarray:
        """Indices of the images that can be read.

        Raises:
            UserError: if too many cannot, or a mask does not fit.
        """
        return usable_rows(self.found, self._read[0], self._wishes.skip_broken)

    @cached_property
    def parts(self) -> np.ndarray:
        """Part of each of ``rows``, int8: by folder, else by share.

        Raises:
            UserError: if there are too few images.
        """
        found = self.found
        keys = [found.groups[row] if found.groups else self.digests[row] for row in self.rows.tolist()]
        classes = np.zeros(len(self.rows), np.int64)
        if found.task == "classification" and found.labels is not None:
            classes = found.labels[self.rows].astype(np.int64)
            if found.parts is None:
                check_classes(classes, found.class_names, found.where)
        parts = found.parts[self.rows].copy() if found.parts is not None else np.full(len(keys), TRAIN, np.int8)
        free = np.flatnonzero(parts == TRAIN)
        shares = {
            name: 0.0 if (parts == part).any() else getattr(self._wishes, name)
            for name, part in (("test", TEST), ("validation", VALIDATION))
        }
        of = "groups" if found.groups else "images"
        parts[free] = share_out([keys[row] for row in free], classes[free], **shares, where=found.where, of=of)
        warn_of_copies(found, self.rows, self.digests, parts)
        return parts

    def of(self, part: int) -> np.ndarray:
        """Return the indices of a part's images."""
        return self.rows[self.parts == part]

    @cached_property
    def mask_classes(self) -> tuple[tuple[str, ...], np.ndarray]:
        """Names of the classes of masks, and the label of each value, int64 (256,)."""
        values = np.zeros_like(self._read[0].values)
        values[self.rows] = self._read[0].values[self.rows]
        wishes = self._wishes
        return mask_classes(self.found, values, classes=wishes.classes, mask_values=wishes.mask_values)

    @cached_property
    def boxes(self) -> Tensor:
        """Labels of all images' boxes, float32 (N, most, 5), in shares of what is shown of them.

        Raises:
            UserError: if a picture is of another shape than its boxes were made for.
        """
        found, sizes = self.found, self._read[0].sizes
        check_sizes(found, sizes)
        whole = [tuple(size) if min(size) > 0 else self.frames[0].size for size in sizes.tolist()]
        places = [placed((height, width), self.frames[0]) for height, width in whole]
        return moved(padded(found.boxes), torch.tensor(places))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, labels or targets; of target pictures, of their channels."""
        if self.found.task == "segmentation":
            return self.mask_classes[0]
        second = self.frames[1]
        if second is not None:
            return ("grey",) if second.channels == GREY else ("red", "green", "blue")
        return self.found.class_names

    @cached_property
    def statistics(self) -> Statistics:
        """Mean and deviation of the training images."""
        return mean_and_std(self._read[0].sums[self.of(TRAIN)], self.frames[0])

    @cached_property
    def task(self) -> str | Task:
        """The task; with mean and deviation of the training part's numbers or target pictures."""
        second = self.frames[1] if self.found.seconds else None
        if self.found.task == "segmentation":
            return build_task("segmentation", ignored=255)
        if self.found.task == "detection":
            return build_task("detection", **self._wishes.detection)
        if self.found.task == "image" and second is not None:
            mean, std = mean_and_std(self._read[0].second_sums[self.of(TRAIN)], second)
            return build_task("image", mean=mean, std=std, data_range=1.0)
        if self.found.task == "regression" and self.found.labels is not None:
            numbers = self.found.labels[self.of(TRAIN)]
            deviation = np.where(numbers.std(0) > 0, numbers.std(0), 1.0)
            mean, std = tuple(numbers.mean(0).tolist()), tuple(deviation.tolist())
            return build_task("regression", mean=mean, std=std, unit=self._wishes.unit)
        return self.found.task


def mean_and_std(sums: np.ndarray, frame: Frame) -> Statistics:
    """Return mean and deviation per channel of values in [0, 1], from whole numbers: the same on every machine.

    Args:
        sums: int64 (N, C, 2), of values and of their squares.
        frame: of the images.
    """
    count = len(sums) * frame.size[0] * frame.size[1]
    mean, std = [], []
    for total, squares in sums.sum(0).tolist():
        mean.append(total / count / 255)
        std.append(max((squares * count - total**2) ** 0.5 / count / 255, 1 / 255))
    return tuple(mean), tuple(std)
