"""What a folder of images holds: a folder a class, or two folders with equal names; train, val and test perhaps."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePath

import numpy as np

from lighten.errors import UserError, did_you_mean, shown

TRAIN, VALIDATION, TEST = PARTS = (0, 1, 2)
"""Parts of a data set, as :attr:`Found.parts` numbers them."""

PART_NAMES = ("train", "validation", "test")

_PART_FOLDERS = {
    "train": TRAIN, "training": TRAIN, "val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION, "test": TEST,
}  # fmt: skip
_PAIR_FOLDERS = {("images", "masks"): "segmentation", ("images", "targets"): "image", ("inputs", "targets"): "image"}
_FOREIGN = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # Pillow knows their names, and needs other programs
_SECOND = {"segmentation": "mask", "image": "target"}


@dataclass(frozen=True, kw_only=True)
class Found:
    """Images and what is to be answered for each.

    Attributes:
        where: they are from, for messages.
        files: paths of the N images.
        names: of the images, for messages.
        task: name of it.
        why: the task is this one, in a few words.
        labels: int64 (N,) of classes, float64 (N, targets) of numbers; ``None`` with ``seconds``.
        class_names: of classes, labels or targets; empty where masks or pictures are to say.
        seconds: paths of the masks or target pictures, one an image.
        boxes: of each image, float64 (n, 5): class, left, top, right, bottom in shares of the picture.
        stated: (height, width) of each image that its boxes' file states; ``None`` where it does not.
        parts: int8 (N,), each in ``PARTS``, where folders say it.
        groups: of the images; no group comes into two parts.
    """

    where: str
    files: tuple[str, ...]
    names: tuple[str, ...]
    task: str
    why: str
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    seconds: tuple[str, ...] = ()
    boxes: tuple[np.ndarray, ...] = ()
    stated: tuple[tuple[int, int] | None, ...] = ()
    parts: np.ndarray | None = None
    groups: tuple[str, ...] = ()


def find_in_folder(
    folder: str, *, masks: str | None = None, targets: str | None = None, classes: Sequence[str] | None = None
) -> Found:
    """Return the images of a folder, and what they are for.

    Args:
        folder: with a folder a class, below ``train``, ``val`` and ``test`` where those are there; or with ``images``
            and ``masks`` (``targets``) alone; or, with ``masks`` or ``targets``, of images.
        masks: folder of masks, with the names of the images.
        targets: folder of target pictures, likewise.
        classes: names of the classes in the order of their numbers.

    Raises:
        UserError: if a folder is missing or empty, images and masks do not pair, or there is one class.
    """
    root = existing(folder, "folder")
    if masks is not None or targets is not None:
        task = "segmentation" if masks is not None else "image"
        second = existing(str(masks if masks is not None else targets), "masks" if masks is not None else "targets")
        return _find_pairs(root, second, task, f"{_SECOND[task]}s={second}")
    parts = _part_folders(root)
    insides = [{path.name.casefold(): path for path in folders_of(place)} for place in parts.values() or (root,)]
    for (first, other), task in _PAIR_FOLDERS.items():
        if all(set(inside) == {first, other} for inside in insides):
            why = f"there are {first} and {other}"
            return _joined(root, list(parts), [_find_pairs(one[first], one[other], task, why) for one in insides])
    return _find_classes(root, classes)


def image_files(folder: Path, without: Path | None = None) -> list[str]:
    """Return the image files below a folder, relative to it and sorted, by the suffixes that Pillow reads.

    Hidden files and folders, and what archives of macOS leave, are passed over.

    Args:
        folder: to look in.
        without: a folder below it that is left out.
    """
    found: list[str] = []
    without = without.resolve() if without is not None else None
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if _visible(name) and Path(place, name).resolve() != without]
        found += [
            Path(place, name).relative_to(folder).as_posix()
            for name in files
            if _visible(name) and PurePath(name).suffix.lower() in _suffixes()
        ]
    return sorted(found)


def class_order(names: Sequence[str], classes: Sequence[str] | None, where: str) -> tuple[str, ...]:
    """Return the names of classes in the order of their numbers: sorted, as numbers where all are.

    Args:
        names: that occur.
        classes: the order, where it is given.
        where: they are from, for messages.

    Raises:
        UserError: if there are fewer than two, or ``classes`` lacks one.
    """
    if classes is not None:
        unknown = next((name for name in names if name not in classes), None)
        if unknown is not None:
            hint = did_you_mean(unknown, classes)
            raise UserError(f"{where}: class {shown(unknown)!r} is not in classes; {hint}; list it, or remove it")
        names = classes
    if len(set(names)) < 2:
        raise UserError(
            f"{where}: one class ({shown(names[0])!r}), expected at least two; add the images of what it is told from"
        )
    if classes is not None:
        return tuple(classes)
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name) if numbers else (0, name)))


def part_of(name: str) -> int | None:
    """Return the part that a folder's name says, a year behind it or none."""
    return _PART_FOLDERS.get(name.casefold().rstrip("0123456789"))


def folders_of(root: Path) -> list[Path]:
    """Return the folders of a folder, sorted, without hidden ones."""
    return sorted(path for path in root.iterdir() if path.is_dir() and _visible(path.name))


def existing(folder: str, option: str) -> Path:
    """Return a folder that is there.

    Raises:
        UserError: if it is not.
    """
    path = Path(folder).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        advice = "; a table of paths and labels is named by table" if option == "folder" else ""
        raise UserError(f"{option}={folder} is a file, expected a folder of images{advice}")
    near = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    hint = f"; {did_you_mean(path.name, near)}" if 0 < len(near) <= 20 else "; check the path"
    raise UserError(f"{option}={folder} is not there, expected a folder of images{hint}")


def _find_classes(root: Path, classes: Sequence[str] | None) -> Found:
    parts = _part_folders(root)
    by_part = {part: _class_files(path) for part, path in parts.items()} or {TRAIN: _class_files(root)}
    first = by_part[TRAIN]
    names = class_order(list(first), classes, str(root))
    files, labels, numbers = [], [], []
    for part, found in by_part.items():
        for name, paths in found.items():
            if name not in first:
                raise UserError(
                    f"{parts[part]} has a class {shown(name)!r} that {parts[TRAIN]} lacks; {did_you_mean(name, first)}"
                )
            files += paths
            labels += [names.index(name)] * len(paths)
            numbers += [part] * len(paths)
    return Found(
        where=str(root),
        files=tuple(map(str, files)),
        names=tuple(path.relative_to(root).as_posix() for path in files),
        task="classification",
        why="a folder a class",
        labels=np.array(labels, np.int64),
        class_names=names,
        parts=np.array(numbers, np.int8) if parts else None,
    )


def _class_files(root: Path) -> dict[str, list[Path]]:
    """Return the images of each class's folder."""
    loose = [path.name for path in root.iterdir() if path.suffix.lower() in _suffixes() and _visible(path.name)]
    folders = folders_of(root)
    if loose and not folders:
        raise UserError(
            f"{root} holds {_images(len(loose))} and no folders, so nothing says what they show; make a folder a "
            "class, or give masks, targets or table"
        )
    if loose:
        raise UserError(
            f"{root} holds {_images(len(loose))} beside the folders of classes, such as {shown(min(loose))!r}; move "
            "them into a class's folder, or away"
        )
    found = {path.name: [path / name for name in image_files(path)] for path in folders}
    if not any(found.values()):
        raise UserError(
            f"{root} holds no images, expected a folder a class with files that Pillow reads; check the path"
        )
    empty = [name for name, paths in found.items() if not paths]
    if empty:
        raise UserError(
            f"{root}: the folder {shown(empty[0])!r} holds no images; add some, or remove it (as it would be a class)"
        )
    return found


def _find_pairs(images: Path, seconds: Path, task: str, why: str) -> Found:
    kind = _SECOND[task]
    firsts, others = _stems(images, seconds), _stems(seconds, images)
    for here, there, at, what, lacks in (
        (firsts, others, seconds, "images", kind), (others, firsts, images, f"{kind}s", "image"),
    ):  # fmt: skip
        alone = [here[stem] for stem in here if stem not in there]
        if alone:
            raise UserError(
                f"{len(alone)} of {len(here)} {what} have no {lacks}, the first is {shown(alone[0])!r}; expected a "
                f"file of that name, of any suffix, in {at}; add or remove"
            )
    parts = _part_folders(images)
    numbers = [_PART_FOLDERS.get(PurePath(stem).parts[0].casefold()) for stem in firsts]
    if parts and None in numbers:
        odd = list(firsts.values())[numbers.index(None)]
        raise UserError(f"{images}: {shown(odd)!r} is in none of {', '.join(p.name for p in parts.values())}; move it")
    return Found(
        where=str(images),
        files=tuple(str(images / name) for name in firsts.values()),
        names=tuple(firsts.values()),
        task=task,
        why=why,
        seconds=tuple(str(seconds / others[stem]) for stem in firsts),
        parts=np.array(numbers, np.int8) if parts else None,
    )


def _joined(root: Path, parts: Sequence[int], found: Sequence[Found]) -> Found:
    """Return images and masks of several parts as those of one folder."""
    if not parts:
        return found[0]
    files = tuple(file for one in found for file in one.files)
    return replace(
        found[0],
        where=str(root),
        files=files,
        names=tuple(Path(file).relative_to(root).as_posix() for file in files),
        seconds=tuple(second for one in found for second in one.seconds),
        parts=np.repeat(np.array(parts, np.int8), [len(one.files) for one in found]),
    )


def _stems(folder: Path, other: Path) -> dict[str, str]:
    """Return the images of a folder by their names without suffix."""
    found: dict[str, str] = {}
    for name in image_files(folder, without=other):
        stem = PurePath(name).with_suffix("").as_posix()
        if stem in found:
            raise UserError(f"{folder}: {shown(found[stem])!r} and {shown(name)!r} have one name; rename or remove one")
        found[stem] = name
    if not found:
        raise UserError(f"{folder} holds no images; check the path")
    return found


def _part_folders(root: Path) -> Mapping[int, Path]:
    """Return the folders of the parts, where there are ``train`` and another."""
    found: dict[int, Path] = {}
    for path in folders_of(root):
        part = _PART_FOLDERS.get(path.name.casefold())
        if part is None:
            continue
        if part in found:
            raise UserError(f"{root} has both {found[part].name} and {path.name}; merge them, or move one away")
        found[part] = path
    return found if TRAIN in found and len(found) > 1 else {}


def _visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"


@cache
def _suffixes() -> frozenset[str]:
    """Return the suffixes of the formats that Pillow reads."""
    from PIL import Image

    return frozenset(
        e for e, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in _FOREIGN
    )
