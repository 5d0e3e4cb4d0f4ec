"""YOLO's text files of boxes: a line a box, ``class x y width height``, in shares of the picture."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from lighten.data.annotated import Annotated, check_there, class_names_of
from lighten.data.find_images import folders_of, image_files, part_of
from lighten.errors import UserError, shown

_NAMES = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt")
_NO_LABELS = frozenset(
    {*_NAMES, "readme.txt", "readme.dataset.txt", "readme.roboflow.txt", "train.txt", "val.txt", "test.txt"}
)


@dataclass(frozen=True)
class Pair:
    """A folder of images and one of their text files, which may be the same, and the part that its name says."""

    images: Path
    labels: Path
    part: int | None


def find_yolo(root: Path) -> list[Pair]:
    """Return where images and text files are, or nothing.

    Known are ``images/train`` and ``labels/train``; ``train/images`` and ``train/labels``; ``images`` and ``labels``;
    the folders that ``data.yaml`` names; and, where a file names the classes, text files beside their images.
    """
    inside = {path.name.casefold(): path for path in folders_of(root)}
    if "images" in inside and "labels" in inside:
        images, labels = inside["images"], inside["labels"]
        parts = [path for path in folders_of(images) if part_of(path.name) is not None]
        pairs = [Pair(path, labels / path.name, part_of(path.name)) for path in parts] or [Pair(images, labels, None)]
    else:
        pairs = [
            Pair(path / "images", path / "labels", part_of(path.name))
            for path in inside.values()
            if part_of(path.name) is not None and (path / "images").is_dir() and (path / "labels").is_dir()
        ]
    pairs = pairs or _as_said(root)
    if not pairs and _names_file(root) is not None:
        beside = [path for path in inside.values() if part_of(path.name) is not None] or [root]
        pairs = [Pair(path, path, part_of(path.name) if path != root else None) for path in beside]
    return pairs if any(_label_files(pair) for pair in pairs) else []


def read_yolo(root: Path, pairs: Sequence[Pair], classes: Sequence[str] | None) -> Annotated:
    """Return the images and boxes of YOLO's text files; polygons are taken as the boxes around them.

    An image without a text file, or with an empty one, has no boxes.

    Args:
        root: the folder, which may hold ``data.yaml`` or ``classes.txt``.
        pairs: as ``find_yolo`` returns them.
        classes: names in the order of their numbers; ``None``: of the file that has them, else numbers.

    Raises:
        UserError: if a line is none of a box, a class has no name, or an image is missing.
    """
    names, by = _names(root, pairs)
    given = Annotated(where=str(root), kind="YOLO", convention="cxcywh")
    missing: list[str] = []
    for pair in pairs:
        labels = _label_files(pair)
        for name in image_files(pair.images):
            file = pair.images / name
            image = given.add_image(str(file), os.path.relpath(file, root), None, pair.part)
            text = labels.pop(PurePath(name).with_suffix("").as_posix(), None)
            if text is not None:
                _add(given, image, text, root)
        missing += [os.path.relpath(path, root) for path in labels.values()]
    check_there(given, missing, ", ".join(str(pair.images) for pair in pairs))
    count = max(given.classes, default=-1) + 1
    if names is None:
        names = list(classes) if classes is not None else [str(number) for number in range(count)]
        by = "classes" if classes is not None else "the labels"
    if count > len(names):
        row = given.classes.index(count - 1)
        raise UserError(
            f"{given.at[row]} has class {count - 1}, expected 0 to {len(names) - 1} of {by}; fix it, or add it"
        )
    given.class_names = class_names_of(names, classes, given.where)
    given.classes = [given.class_names.index(names[label]) for label in given.classes]
    return given


def _as_said(root: Path) -> list[Pair]:
    """Return the folders that ``data.yaml`` names as ``train``, ``val`` and ``test``, each once."""
    file = _names_file(root)
    content = _yaml(file) if file is not None and file.suffix in (".yaml", ".yml") else {}
    bases = [root, *([root / str(content["path"])] if "path" in content else [])]
    found: dict[Path, Pair] = {}
    for key in ("train", "val", "test"):
        said = content.get(key) or []
        for name in [said] if isinstance(said, str) else said:
            within = str(name).removeprefix("../").removeprefix("./")
            place = next((base / way for base in bases for way in (str(name), within) if (base / way).is_dir()), None)
            if place is None:
                continue
            last = max((n for n, part in enumerate(place.parts) if part == "images"), default=None)
            parts = list(place.parts)
            if last is not None:
                parts[last] = "labels"
            found.setdefault(place.resolve(), Pair(place, Path(*parts), part_of(key)))
    return list(found.values())


def _add(given: Annotated, image: int, text: Path, root: Path) -> None:
    try:
        lines = text.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{text} cannot be read as text ({error}); replace it") from error
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        at = f"{os.path.relpath(text, root)} line {number}"
        values = _numbers(words)
        polygon = values is not None and len(values) >= 7 and len(values) % 2 == 1
        if values is None or not (len(values) == 5 or polygon) or values[0] != int(values[0]) or values[0] < 0:
            raise UserError(
                f"{given.where}: {at} is {shown(line, 40)!r}, expected a class's number, centre x, centre y, width and "
                "height in shares of the picture; fix it"
            )
        box = _around(values[1:]) if polygon else values[1:]
        given.add_box(image, int(values[0]), box, at)


def _around(points: Sequence[float]) -> list[float]:
    """Return centre and sides of the box around a polygon, of which x and y come in turn."""
    xs, ys = points[::2], points[1::2]
    return [(min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, max(xs) - min(xs), max(ys) - min(ys)]


def _numbers(words: Sequence[str]) -> list[float] | None:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return None
    return numbers if all(abs(number) < float("inf") for number in numbers) else None


def _label_files(pair: Pair) -> dict[str, Path]:
    """Return the text files below a folder by their names without suffix."""
    files = sorted(pair.labels.rglob("*.txt")) if pair.labels.is_dir() else []
    return {
        path.relative_to(pair.labels).with_suffix("").as_posix(): path
        for path in files
        if path.name.casefold() not in _NO_LABELS and not path.name.startswith(".")
    }


def _names(root: Path, pairs: Sequence[Pair]) -> tuple[list[str] | None, str]:
    """Return the names of the classes, and the file that has them."""
    places = [root, *(pair.labels for pair in pairs), *(pair.labels.parent for pair in pairs)]
    file = next((file for place in places if (file := _names_file(place)) is not None), None)
    if file is None:
        return None, ""
    if file.suffix not in (".yaml", ".yml"):
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()], file.name
    names = _yaml(file)["names"]
    if isinstance(names, Mapping):
        if sorted(names) != list(range(len(names))):
            raise UserError(
                f"{file}: names are numbered {shown(str(sorted(names)), 60)}, expected 0 to {len(names) - 1}"
            )
        names = [names[number] for number in range(len(names))]
    return [str(name) for name in names], file.name


def _names_file(folder: Path) -> Path | None:
    """Return the file of a folder that names the classes."""
    if not folder.is_dir():
        return None
    for path in sorted(folder.glob("*.y*ml")):
        if isinstance(_yaml(path).get("names"), list | Mapping):
            return path
    return next((folder / name for name in _NAMES if (folder / name).is_file()), None)


def _yaml(file: Path) -> Mapping[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, Mapping) else {}
