"""Boxes as files of annotations give them, and what they become: corners in shares of their pictures."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lighten.data.decode import open_image, turned_size
from lighten.errors import UserError, did_you_mean, shown

CONVENTIONS = {
    "xywh": "left, top, width, height",
    "xyxy": "left, top, right, bottom",
    "cxcywh": "centre x, centre y, width, height",
}
"""What four numbers of a box mean."""

SHARES = "cxcywh"
"""The convention that is one of shares where a format prescribes it; the others are of pixels."""

_SHARES_UP_TO = 2.0
"""Numbers are shares of a picture where hardly any is above this, else pixels."""
_FEW = 0.1
"""Share of the boxes that may not fit their pictures before another convention is tried."""
_NEARLY_ALL = 0.98
"""Share of the boxes that another convention must fit to be taken."""
_SLACK = 0.005
"""Share of a picture's side by which a box may stick out before it is told."""


@dataclass(kw_only=True)
class Annotated:
    """Images and their boxes, as read.

    Attributes:
        where: they are from, for messages.
        kind: of the files, for messages.
        convention: that the format prescribes, of ``CONVENTIONS``.
        class_names: in the order of their numbers.
        files: paths of the N images.
        names: of the images, for messages.
        sizes: (height, width) of each that its annotations state; ``None`` where they do not.
        parts: of the images, each in ``find_images.PARTS``; ``None`` where nothing says it.
        images: of each box, the index of its image.
        classes: of each box.
        values: of each box, four numbers.
        at: of each box, where it is written, for messages.
        left_out: what was left out, and how many.
    """

    where: str
    kind: str
    convention: str
    class_names: tuple[str, ...] = ()
    files: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int] | None] = field(default_factory=list)
    parts: list[int | None] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    values: list[Sequence[float]] = field(default_factory=list)
    at: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def add_image(self, file: str, name: str, size: tuple[int, int] | None, part: int | None) -> int:
        """Add an image and return its index."""
        self.files.append(file)
        self.names.append(name)
        self.sizes.append(size)
        self.parts.append(part)
        return len(self.files) - 1

    def add_box(self, image: int, label: int, values: Sequence[float], at: str) -> None:
        """Add a box."""
        self.images.append(image)
        self.classes.append(label)
        self.values.append(values)
        self.at.append(at)

    def leave_out(self, what: str) -> None:
        """Count a box that is left out."""
        self.left_out[what] = self.left_out.get(what, 0) + 1


def boxes_in_shares(given: Annotated, *, box_format: str | None, skip: float) -> tuple[np.ndarray, ...]:
    """Return each image's boxes float64 (n, 5): class, left, top, right, bottom in shares of the picture.

    What sticks out is cut off, what has no area is left out; one warning tells how many. Where the numbers do not fit
    the pictures as the format prescribes them, and fit as another convention, they are taken so, with a warning.

    Args:
        given: as read.
        box_format: the convention, of ``CONVENTIONS``; ``None``: as prescribed, or as guessed.
        skip: share of the boxes that may have no area.

    Raises:
        UserError: if more have none, or the convention cannot be told.
    """
    values = np.array(given.values, np.float64).reshape(-1, 4)
    images = np.array(given.images, np.int64)
    pixels = np.count_nonzero(values > _SHARES_UP_TO) > _FEW * values.size
    sides = np.ones((len(values), 2))
    if pixels == (given.convention == SHARES):
        units = ("shares of their pictures", "pixels")
        prescribed, found = units if pixels else units[::-1]
        warnings.warn(
            f"{given.where}: the boxes are in {found}, where {given.kind} has {prescribed}; they are taken as that",
            stacklevel=2,
        )
    if pixels:
        sizes = np.array([_size(given, image) for image in range(len(given.files))], np.float64).reshape(-1, 2)
        sides = sizes[images, ::-1]
    known = np.all(sides > 0, axis=1)  # of an image that cannot be read, nothing is known
    shares = values / np.where(known[:, None], np.tile(sides, 2), 1)
    convention = box_format or _convention(given, shares[known])
    corners = corners_of(shares, convention)
    cut = corners.clip(0, 1)
    bad = known & ~(np.isfinite(corners).all(1) & (cut[:, 2:] - cut[:, :2] > 1e-6).all(1))
    _tell(given, values, corners, bad, known & ~bad & (np.abs(cut - corners) > _SLACK).any(1), skip)
    good = known & ~bad
    labels = np.column_stack([np.array(given.classes, np.float64).reshape(-1), cut])
    return tuple(labels[good & (images == image)] for image in range(len(given.files)))


def corners_of(values: np.ndarray, convention: str) -> np.ndarray:
    """Return left, top, right and bottom of boxes (N, 4)."""
    first, second = values[:, :2], values[:, 2:]
    if convention == "xyxy":
        return values
    if convention == "xywh":
        return np.concatenate([first, first + second], 1)
    return np.concatenate([first - second / 2, first + second / 2], 1)


def _convention(given: Annotated, shares: np.ndarray) -> str:
    """Return the convention that fits the pictures: the prescribed one, or another that does where it does not."""
    fits = {name: _fitting(corners_of(shares, name)) for name in CONVENTIONS}
    usual = fits.pop(given.convention)
    if usual >= 1 - _FEW:
        return given.convention
    best = max(fits, key=lambda name: fits[name])
    if fits[best] < _NEARLY_ALL:
        return given.convention
    if min(fits.values()) >= _NEARLY_ALL:
        raise UserError(
            f"{given.where}: {1 - usual:.0%} of the boxes are not within their pictures as {given.kind} has them "
            f"({CONVENTIONS[given.convention]}), and all are in two other ways; set box_format: {' or '.join(fits)}"
        )
    warnings.warn(
        f"{given.where}: {1 - usual:.0%} of the boxes are not within their pictures as {given.kind} has them "
        f"({CONVENTIONS[given.convention]}), and {fits[best]:.0%} are as {CONVENTIONS[best]}; they are taken as that, "
        f"box_format: {given.convention} keeps the other",
        stacklevel=2,
    )
    return best


def _fitting(corners: np.ndarray) -> float:
    """Return the share of boxes that have an area and lie within their pictures."""
    if not len(corners):
        return 1.0
    inside = (corners >= -_SLACK).all(1) & (corners <= 1 + _SLACK).all(1)
    return float((inside & (corners[:, 2:] > corners[:, :2]).all(1)).mean())


def _tell(
    given: Annotated, values: np.ndarray, corners: np.ndarray, bad: np.ndarray, cut: np.ndarray, skip: float
) -> None:
    """Warn of what was left out or cut off; refuse where too much is bad."""

    def first(rows: np.ndarray) -> str:
        row = int(np.flatnonzero(rows)[0])
        numbers = ", ".join(f"{number:g}" for number in values[row])
        return f"{given.at[row]} ({numbers})"

    of = f"of {len(values)} boxes"
    if bad.any():
        line = f"{given.where}: {bad.sum()} {of} have no area within their picture, the first is {first(bad)}"
        if bad.sum() > skip * len(values):
            raise UserError(
                f"{line}; fix or remove them, or raise skip_broken, the share that may be left out, {skip:g}"
            )
        warnings.warn(f"{line}; they are left out", stacklevel=3)
    if cut.any():
        warnings.warn(
            f"{given.where}: {cut.sum()} {of} stick out of their picture, the first is {first(cut)}; what is outside "
            "is cut off",
            stacklevel=3,
        )


def _size(given: Annotated, image: int) -> tuple[int, int]:
    """Return (height, width) of an image, as stated or as its head says; zeros where it cannot be read."""
    stated = given.sizes[image]
    if stated is None:
        try:
            with open_image(given.files[image]) as picture:
                stated = turned_size(picture)
        except Exception:
            stated = 0, 0
        given.sizes[image] = stated
    return stated


def class_names_of(names: Sequence[str], classes: Sequence[str] | None, where: str) -> tuple[str, ...]:
    """Return the names of the classes of boxes, of which one is enough, in the order of their numbers.

    Raises:
        UserError: if a name is not in ``classes``, or there are none.
    """
    if not names:
        raise UserError(f"{where}: no class is named, expected at least one; check the annotations")
    unknown = next((name for name in names if classes is not None and name not in classes), None)
    if classes is not None and unknown is not None:
        hint = did_you_mean(unknown, classes)
        raise UserError(f"{where}: class {shown(unknown)!r} is not in classes; {hint}; list it, or remove it")
    return tuple(classes if classes is not None else names)


def check_there(given: Annotated, missing: Sequence[str], where: str) -> None:
    """Raise ``UserError`` where annotated images are missing."""
    if missing:
        count = len(missing) + len(given.files)
        raise UserError(
            f"{given.where}: {len(missing)} of {count} annotated images are not there, the first is "
            f"{shown(missing[0])!r}, looked for in {where}; add them, or remove their annotations"
        )
