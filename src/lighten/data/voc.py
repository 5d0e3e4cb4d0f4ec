"""Pascal VOC's XML files of boxes: one an image, with ``xmin``, ``ymin``, ``xmax`` and ``ymax`` of each object."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from xml.etree import ElementTree

from lighten.data.annotated import Annotated, check_there, class_names_of
from lighten.data.checks import first_line
from lighten.data.find_images import folders_of, image_files, part_of
from lighten.errors import UserError, shown

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_SETS = {0: ("train",), 1: ("val", "validation"), 2: ("test",)}


def find_voc(root: Path) -> list[tuple[Path, Path, int | None]]:
    """Return folders of images, of their XML files, and the part that their name says; or nothing.

    Known are ``JPEGImages`` and ``Annotations``, ``images`` and ``annotations``, and XML files beside their images,
    also below ``train``, ``valid`` and ``test``.
    """
    inside = {path.name.casefold(): path for path in folders_of(root)}
    images = inside.get("jpegimages") or inside.get("images")
    if "annotations" in inside and images is not None:
        return [(images, inside["annotations"], None)] if _files(inside["annotations"]) else []
    parts = [path for path in inside.values() if part_of(path.name) is not None]
    beside: list[tuple[Path, Path, int | None]] = [(path, path, part_of(path.name)) for path in parts if _is_voc(path)]
    return beside or ([(root, root, None)] if _is_voc(root) else [])


def read_voc(root: Path, folders: Sequence[tuple[Path, Path, int | None]], classes: Sequence[str] | None) -> Annotated:
    """Return the images and boxes of Pascal VOC's files.

    Objects that are marked as difficult are left out. Pixels count from 1 there, unless one of them is 0. Images
    without an XML file are not annotated, and left out. Classes are sorted by name.

    Args:
        root: the folder; ``ImageSets/Main`` in it says which part an image belongs to.
        folders: as ``find_voc`` returns them.
        classes: names in the order of their numbers.

    Raises:
        UserError: if a file cannot be read, an image is missing, or a class is not in ``classes``.
    """
    given = Annotated(where=str(root), kind="Pascal VOC", convention="xyxy")
    sets = _image_sets(root)
    missing: list[str] = []
    objects: list[str] = []
    for images, notes, part in folders:
        pictures = {PurePath(name).with_suffix("").as_posix(): name for name in image_files(images)}
        by_name = {PurePath(name).name: name for name in pictures.values()}
        for file in _files(notes):
            tree = _tree(file)
            stem, told = file.relative_to(notes).with_suffix("").as_posix(), (tree.findtext("filename") or "").strip()
            name = pictures.get(stem) or by_name.get(PurePath(told).name)
            if name is None:
                missing.append(told or stem)
                continue
            path = images / name
            image = given.add_image(
                str(path), os.path.relpath(path, root), _size(tree), sets.get(stem) if part is None else part
            )
            for number, node in enumerate(tree.iter("object"), 1):
                _add(given, objects, image, node, f"{os.path.relpath(file, root)} object {number}", root)
    check_there(given, missing, ", ".join(str(images) for images, *_ in folders))
    first = 0.0 if any(min(values[:2]) < 1 for values in given.values) else 1.0
    given.values = [[left - first, top - first, right, bottom] for left, top, right, bottom in given.values]
    given.class_names = class_names_of(sorted(set(objects)), classes, given.where)
    given.classes = [given.class_names.index(name) for name in objects]
    return given


def _add(given: Annotated, objects: list[str], image: int, node: ElementTree.Element, at: str, root: Path) -> None:
    name, box = (node.findtext("name") or "").strip(), node.find("bndbox")
    if (node.findtext("difficult") or "0").strip() == "1":
        given.leave_out("difficult objects")
        return
    try:
        values = [float(box.findtext(side) or "") for side in _SIDES] if box is not None else []
    except ValueError:
        values = []
    if not name or not values:
        raise UserError(f"{root}: {at} lacks a name or {', '.join(_SIDES)} of its bndbox; fix it")
    objects.append(name)
    given.add_box(image, 0, values, at)


def _tree(file: Path) -> ElementTree.Element:
    try:
        content = file.read_bytes()
        if b"<!ENTITY" in content:
            raise ValueError("it declares entities")
        tree = ElementTree.fromstring(content)
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise UserError(f"{file} cannot be read as XML ({first_line(error)}); replace it") from error
    if tree.tag != "annotation":
        raise UserError(f"{file} holds {shown(tree.tag)!r}, expected Pascal VOC's annotation; replace it")
    return tree


def _size(tree: ElementTree.Element) -> tuple[int, int] | None:
    sides = [(tree.findtext(f"size/{side}") or "").strip() for side in ("height", "width")]
    return (int(sides[0]), int(sides[1])) if all(side.isdigit() and int(side) > 0 for side in sides) else None


def _image_sets(root: Path) -> dict[str, int]:
    """Return the part of each image that ``ImageSets/Main`` lists, by its name without suffix."""
    found: dict[str, int] = {}
    for part, names in _SETS.items():
        for name in names:
            file = root / "ImageSets" / "Main" / f"{name}.txt"
            if file.is_file():
                found |= {line.split()[0]: part for line in file.read_text().splitlines() if line.strip()}
    return found if len(set(found.values())) > 1 else {}


def _is_voc(folder: Path) -> bool:
    """Return whether the first XML file in a folder is one of Pascal VOC's."""
    first = next(iter(sorted(folder.glob("*.xml"))), None)
    return first is not None and b"<annotation" in first.read_bytes()[:1000]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.xml") if not path.name.startswith("."))
