"""What may be wrong with images that were found: unreadable files, masks that do not fit, classes of one image."""

import warnings
from collections.abc import Sequence

import numpy as np

from lighten.data.decode import IGNORED
from lighten.data.decoded import Facts
from lighten.data.find_images import Found
from lighten.errors import UserError, shown

_ROUNDED = 0.02
"""By which the ratio of an image's sides may differ from what is stated."""
_NAMED = 10
"""Files that a message names."""


def usable_rows(found: Found, facts: Facts, skip_broken: float) -> np.ndarray:
    """Return the indices of the images that can be read, with one warning that names the others.

    Args:
        found: the images.
        facts: what reading them has shown.
        skip_broken: share of the images that may be unreadable.

    Raises:
        UserError: if more are, or a mask or target picture does not fit its image.
    """
    if facts.wrong:
        first = min(facts.wrong)
        more = f" (and {len(facts.wrong) - 1} more)" if len(facts.wrong) > 1 else ""
        raise UserError(f"{facts.wrong[first]}{more}")
    broken = sorted(facts.errors)
    if broken:
        named = ", ".join(f"{shown(found.names[row])} ({shown(facts.errors[row], 100)})" for row in broken[:_NAMED])
        more = f" and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        line = f"{found.where}: {len(broken)} of {len(found.files)} images cannot be read: {named}{more}"
        if len(broken) > skip_broken * len(found.files):
            raise UserError(
                f"{line}; replace or remove them, or raise skip_broken, the share that may be skipped, {skip_broken:g}"
            )
        warnings.warn(f"{line}; they are skipped", stacklevel=2)
    return np.setdiff1d(np.arange(len(found.files)), broken)


def check_classes(labels: np.ndarray, names: Sequence[str], where: str) -> None:
    """Check that each class that occurs has two images: one to learn from, and one to check with.

    Raises:
        UserError: if one has not, or fewer than two classes occur.
    """
    counts = np.bincount(labels, minlength=len(names))
    if (counts > 0).sum() < 2:
        raise UserError(f"{where}: {(counts > 0).sum()} class with images that can be read, expected at least two")
    lone = np.flatnonzero(counts == 1)
    if len(lone):
        more = f", as have {len(lone) - 1} more classes" if len(lone) > 1 else ""
        raise UserError(
            f"{where}: class {shown(names[lone[0]])!r} has one image{more}, expected at least two: one to learn from "
            "and one to check with; add some, or take the class away"
        )


def warn_of_copies(found: Found, rows: np.ndarray, digests: Sequence[str], parts: np.ndarray) -> None:
    """Warn of copies of one image that have different classes, or lie in different parts.

    Args:
        found: the images.
        rows: indices of those that can be read.
        digests: of all files.
        parts: of each of ``rows``.
    """
    ahead = np.argsort(parts, kind="stable")
    rows, parts = rows[ahead], parts[ahead]
    _, first, group = np.unique([digests[row] for row in rows.tolist()], return_index=True, return_inverse=True)
    original = first[group]  # of training, where it is among them
    labels = found.labels[rows] if found.labels is not None and found.task in ("classification", "multilabel") else None
    for values, what, hint in (
        (labels, "with other labels", "nothing can learn both; keep one"),
        (parts, "in other parts", "what is tested was trained on; remove it from one"),
    ):
        if values is None:
            continue
        odd = np.flatnonzero((values != values[original]).reshape(len(rows), -1).any(1))
        if len(odd):
            one, other = (shown(found.names[rows[i]]) for i in (original[odd[0]], odd[0]))
            warnings.warn(
                f"{found.where}: {len(odd)} images are copies of others {what}, such as {other} of {one}; {hint}",
                stacklevel=2,
            )


def check_sizes(found: Found, sizes: np.ndarray) -> None:
    """Check that images have the shape that their boxes' file states; they may have another size.

    Args:
        found: images and boxes.
        sizes: int64 (N, 2), height and width of each; zeros where it cannot be read.

    Raises:
        UserError: if one has another shape.
    """
    wrong = [
        row
        for row, (stated, size) in enumerate(zip(found.stated, sizes.tolist(), strict=True))
        if stated is not None and min(*stated, *size) > 0
        and abs(stated[0] * size[1] / (stated[1] * size[0]) - 1) > _ROUNDED + 1 / min(*stated, *size)
    ]  # fmt: skip
    if wrong:
        (height, width), (tall, wide) = found.stated[wrong[0]] or (0, 0), sizes[wrong[0]].tolist()
        turned = " as EXIF turns it" if (height > width) != (tall > wide) else ""
        raise UserError(
            f"{found.where}: {len(wrong)} of {len(found.files)} images have another shape than is stated with their "
            f"boxes, the first is {shown(found.names[wrong[0]])}: {wide}×{tall} pixels{turned}, and {width}×{height} "
            "are stated; make boxes for the images as they are"
        )


def mask_classes(
    found: Found, values: np.ndarray, *, classes: Sequence[str] | None, mask_values: Sequence[int] | None
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return names of the classes of masks, and the label of each value, int64 (256,).

    Args:
        found: images and masks.
        values: bool (N, 256), which values each mask has.
        classes: names of the classes.
        mask_values: value of each class; ``None``: they are numbered from 0. 255 is no class where it is not in here.

    Raises:
        UserError: if a mask has another value, or there are fewer than two classes.
    """
    seen = np.flatnonzero(values.any(0))
    if mask_values is None:
        top = max((int(value) for value in seen if value != IGNORED), default=-1)
        mask_values = range(len(classes) if classes is not None else top + 1)
        if classes is None and list(seen) == [0, IGNORED]:
            raise UserError(
                f"{found.where}: masks hold 0 and {IGNORED} alone, and {IGNORED} means 'no class'; set mask_values: "
                f"[0, {IGNORED}] to have both as classes, or write 1 where the object is"
            )
        held = [int(value) for value in seen if value != IGNORED]
        if classes is None and 2 * len(held) < top + 1:
            shown_ones = ", ".join(map(str, held[:_NAMED])) + (", …" if len(held) > _NAMED else "")
            raise UserError(
                f"{found.where}: masks hold {shown_ones}, which would be {top + 1} classes, most of them nowhere; set "
                f"mask_values: [{shown_ones}], or list the names of all {top + 1} in classes"
            )
    labels = np.full(256, -1, np.int64)
    labels[IGNORED] = IGNORED
    labels[list(mask_values)] = np.arange(len(mask_values))
    unknown = values & (labels < 0)
    if unknown.any():
        row = int(np.flatnonzero(unknown.any(1))[0])
        wanted = f"0 to {len(mask_values) - 1}" if isinstance(mask_values, range) else list(mask_values)
        option = "classes" if isinstance(mask_values, range) else "mask_values"
        raise UserError(
            f"{found.seconds[row]}: the mask holds {int(np.flatnonzero(unknown[row])[0])}, expected {wanted} (of "
            f"{option}), or {IGNORED} where there is no class; fix it, or add to {option}"
        )
    names = tuple(classes) if classes is not None else tuple(map(str, mask_values))
    if len(names) < 2:
        one = f"one class ({names[0]})" if names else f"no class, {IGNORED} alone"
        raise UserError(f"{found.where}: masks hold {one}, expected at least two; check the masks")
    return names, labels
