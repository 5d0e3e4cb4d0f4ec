"""OwnImageData: images of one's own with what is to be answered for each, in batches."""

import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch

from lighten.data.augmentation import Augmentation
from lighten.data.checks import check_at_least
from lighten.data.decode import GREY, settings_of
from lighten.data.find_images import PARTS, TRAIN, Found
from lighten.data.frame import Looks
from lighten.data.loaders import SplitData
from lighten.data.own_image_set import Answers, OwnImageSet
from lighten.data.prepared_images import PreparedImages, Wishes
from lighten.errors import UserError
from lighten.tasks.task import Task
from lighten.utils.fingerprint import fingerprint_of

_TOLD: set[str] = set()  # what was found, once in a process


class OwnImageData(SplitData):
    """Images of one's own, with what is to be answered for each.

    Args:
        find: finds the images; called once, when something about them is first asked for.
        looks: size and channels.
        wishes: task, shares, classes and where decoded images are kept.
        batch_size: samples of one process.
        seed: of order and augmentation.
        workers: processes that fetch batches ahead.
        augmentation: settings of :class:`Augmentation`, ``None`` for those that are chosen; ``None``: none at all.
        views: different augmentations of a training image; ``None`` draws another one each epoch.

    Attributes:
        keyed: set it to have keys in training batches, one number for each view of each sample.
        views: of a training image; 1 without augmentation, ``None`` for another one each epoch.
        validation: samples of the validation part, after ``setup``.
        prepared: what is known of the images.

    Raises:
        UserError: if a value is out of range, or ``views`` has no effect.
    """

    validation: int = 0

    def __init__(
        self, find: Callable[[], Found], looks: Looks, wishes: Wishes, *, batch_size: int, seed: int, workers: int,
        augmentation: Mapping[str, Any] | None, views: int | None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_at_least(0, workers=workers)
        check_at_least(1, batch_size=batch_size, views=1 if views is None else views)
        if augmentation is None and views not in (None, 1):
            raise UserError(f"views={views} with augment=false: there is one view; leave views out, or set augment")
        self.batch_size = batch_size
        self.seed = seed
        self.workers = workers
        self.views = views if augmentation is not None else 1
        self.options = {}
        self.prepared = PreparedImages(find, looks, wishes)
        self._augmentation = augmentation

    @property
    def task(self) -> str | Task:
        """The task; with mean and deviation of the training part's numbers or target pictures."""
        return self.prepared.task

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, labels or targets; of target pictures, of their channels."""
        return self.prepared.class_names

    @property
    def num_classes(self) -> int:
        """Outputs of a network: classes, labels, targets, or channels of a picture."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        frame = self.prepared.frames[0]
        return frame.channels, *frame.size

    @property
    def mean(self) -> tuple[float, ...]:
        """Of the training images, per channel, for values in [0, 1]."""
        return self.prepared.statistics[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Likewise."""
        return self.prepared.statistics[1]

    @property
    def licence(self) -> str:
        """One line."""
        return f"not stated; see where {self.prepared.found.where} is from"

    @cached_property
    def augmentation(self) -> Augmentation | None:
        """What is done to training images.

        Raises:
            UserError: if a value is out of range, or mixup is to mix masks.
        """
        if self._augmentation is None:
            return None
        task = self.prepared.found.task
        pictures = task == "image"
        chosen: dict[str, Any] = {
            "flip": self.input_shape[0] != GREY,
            "crop": 1.0 if pictures else 0.5,
            "colour": 0.0 if pictures else 0.2,
        }
        given = {key: chosen[key] if value is None else value for key, value in self._augmentation.items()}
        if task == "detection" and given["mixup"] + given["cutmix"]:
            raise UserError("mixup and cutmix mix pictures, and boxes cannot be mixed; leave both out")
        if task == "segmentation" and given["mixup"]:
            raise UserError("mixup mixes pixels, and the classes of masks cannot be mixed; set cutmix instead")
        return Augmentation(seed=self.seed, **given)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of images, labels and parts, and of the options that change what a model sees."""
        images, how = self.prepared, self.augmentation
        found = images.found
        return fingerprint_of(
            files=[images.digests[row] for row in images.rows],
            labels=_labels_in_json(images),
            values=images.mask_classes[1].tolist() if found.task == "segmentation" else None,
            names=list(self.class_names), parts=images.parts.tolist(), task=found.task,
            frames=[None if frame is None else settings_of(frame) for frame in images.frames], views=self.views,
            augmentation={} if how is None else {key: value for key, value in vars(how).items() if key != "seed"},
        )  # fmt: skip

    def prepare_data(self) -> None:
        """Decode all images, so that mistakes are reported before a worker starts, and say what was found."""
        said = describe(self)
        if said not in _TOLD:
            _TOLD.add(said)
            print(said)

    def setup(self, stage: str) -> None:
        """Make the parts; the same for every stage."""
        self.train_set, self.val_set, self.test_set = (self._set(part) for part in PARTS)
        self.validation = len(self.val_set)

    def _set(self, part: int) -> OwnImageSet:
        images, training = self.prepared, part == TRAIN
        rows, found, task = images.of(part), images.found, self.task
        mean, std = getattr(task, "mean", ()), getattr(task, "std", ())
        labels = None if found.labels is None else found.labels[rows]
        if labels is not None and found.task != "classification":
            labels = ((labels - np.array(mean)) / np.array(std) if mean else labels).astype(np.float32)
        answers = Answers(
            labels=None if labels is None else torch.from_numpy(labels),
            boxes=images.boxes[torch.from_numpy(rows)] if found.task == "detection" else None,
            classes=torch.from_numpy(images.mask_classes[1]) if found.task == "segmentation" else None,
            mean=mean,
            std=std,
        )
        return OwnImageSet(
            images.store, rows, answers, mean=self.mean, std=self.std,
            augmentation=self.augmentation if training else None, views=self.views if training else 1,
        )  # fmt: skip

    @property
    def train_samples(self) -> int:
        """Samples of the training part; known after ``setup``."""
        return len(self.train_set)

    def preprocessing(self) -> dict[str, Any]:
        """Return how an image becomes an input, in JSON types, for :func:`lighten.data.preprocessing.reader_of`."""
        frame = self.prepared.frames[0]
        return {"kind": "images", **settings_of(frame), "mean": list(self.mean), "std": list(self.std)}


def _labels_in_json(images: PreparedImages) -> Any:
    if images.found.task == "detection":
        return hashlib.sha256(images.boxes[torch.from_numpy(images.rows)].numpy().tobytes()).hexdigest()
    labels = images.found.labels
    return None if labels is None else labels[images.rows].tolist()


def describe(data: OwnImageData) -> str:
    """Return one line on what was found and chosen."""
    images, how = data.prepared, data.augmentation
    found, frame = images.found, images.frames[0]
    counts = [
        f"{(images.parts == part).sum():,} {name}" for part, name in enumerate(("training", "validation", "test"))
    ]
    many = {"regression": "numbers", "image": "channels", "multilabel": "labels"}.get(found.task, "classes")
    done = [] if how is None else [f"{key} {value:g}" for key, value in vars(how).items() if key != "seed" and value]
    looks = f"{frame.size[0]}×{frame.size[1]} {'grey' if frame.channels == GREY else 'RGB'} by {frame.resize}"
    return (
        f"data images: {', '.join(counts)} of {found.where}; {found.task} ({found.why}), {data.num_classes} {many}; "
        f"{looks}; augmented: {', '.join(done) or 'no'}"
    )
