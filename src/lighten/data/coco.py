"""COCO's JSON files of boxes: ``images``, ``categories``, and ``annotations`` with a ``bbox`` each."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from lighten.data.annotated import Annotated, check_there, class_names_of
from lighten.data.checks import first_line
from lighten.data.find_images import part_of
from lighten.errors import UserError, shown

_LISTS = ("images", "annotations", "categories")
_MANY = 20
"""JSON files of a folder above which they are no whole data sets, but one an image."""


def find_coco(root: Path) -> list[Path]:
    """Return the JSON files of a folder that hold boxes as COCO has them, or none."""
    places = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    inside = [[path for path in sorted(place.glob("*.json")) if not path.name.startswith(".")] for place in places]
    found = [path for files in inside if len(files) <= _MANY for path in files if _problem(_content(path)) is None]
    instances = [path for path in found if path.stem.startswith("instances")]
    return instances or found


def read_coco(files: Sequence[Path], folder: Path, classes: Sequence[str] | None) -> Annotated:
    """Return the images and boxes of COCO's files.

    Crowds (``iscrowd``) are left out. Classes are numbered by their ids.

    Args:
        files: one, or one a part.
        folder: that the images are in, or below.
        classes: names in the order of their numbers; ``None``: of their ids.

    Raises:
        UserError: if a file is none of COCO's, an image is missing, an id is there twice or one is unknown.
    """
    contents = {file: _checked(file) for file in files}
    parts = [_part(file) for file in files] if len(files) > 1 else [None]
    if len(files) > 1 and (None in parts or len(set(parts)) < len(parts)):
        told = ", ".join(file.name for file in files)
        raise UserError(f"{folder}: {told} do not say which part each is; name one by annotations, or name them so")
    by_id = {file: _categories(file, content) for file, content in contents.items()}
    names = list(dict.fromkeys(name for found in by_id.values() for name in found.values()))
    where = str(files[0] if len(files) == 1 else folder)
    given = Annotated(where=where, kind="COCO", convention="xywh", class_names=class_names_of(names, classes, where))
    for (file, content), part in zip(contents.items(), parts, strict=True):
        _add(given, file, content, by_id[file], folder, part)
    return given


def _add(
    given: Annotated, file: Path, content: Mapping[str, Any], categories: Mapping[Any, str], folder: Path,
    part: int | None,
) -> None:  # fmt: skip
    images = _by_id(file, content["images"], "image", "file_name")
    place = _place(file, folder, [str(image["file_name"]) for image in images.values()])
    index: dict[Any, int] = {}
    missing = []
    for key, image in images.items():
        path = place / str(image["file_name"])
        path = path if path.exists() else place / PurePath(path).name
        if not path.exists():
            missing.append(str(image["file_name"]))
            continue
        size = image.get("height"), image.get("width")
        stated = (int(size[0]), int(size[1])) if all(isinstance(side, int) and side > 0 for side in size) else None
        index[key] = given.add_image(str(path), os.path.relpath(path, folder), stated, part)
    check_there(given, missing, str(place))
    numbers = {name: number for number, name in enumerate(given.class_names)}
    seen: set[Any] = set()
    for row, note in enumerate(content["annotations"]):
        at = f"annotation {note.get('id', row)} of {file.name}"
        if "id" in note and note["id"] in seen:
            raise UserError(
                f"{file}: two annotations have the id {note['id']!r}, expected one each; remove or renumber"
            )
        seen.add(note.get("id"))
        if note.get("image_id") not in index:
            raise UserError(f"{file}: {at} is of image {note.get('image_id')!r}, which images do not list; remove it")
        if note.get("category_id") not in categories:
            known = ", ".join(map(str, list(categories)[:10]))
            raise UserError(
                f"{file}: {at} is of category {note.get('category_id')!r}, expected one of categories: {known}"
            )
        if note.get("iscrowd"):
            given.leave_out("crowds")
            continue
        given.add_box(index[note["image_id"]], numbers[categories[note["category_id"]]], _bbox(file, at, note), at)


def _bbox(file: Path, at: str, note: Mapping[str, Any]) -> Sequence[float]:
    values = note.get("bbox")
    numbers = isinstance(values, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if not numbers or len(values or ()) != 4:
        raise UserError(f"{file}: {at} has the bbox {shown(str(values), 40)}, expected [left, top, width, height]")
    return list(values or ())


def _categories(file: Path, content: Mapping[str, Any]) -> dict[Any, str]:
    """Return names of categories by their ids, sorted by these."""
    found = {key: str(one["name"]) for key, one in _by_id(file, content["categories"], "category", "name").items()}
    twice = next((name for name in found.values() if list(found.values()).count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{file}: two categories have the name {shown(twice)!r}, expected one each; rename one")
    return dict(sorted(found.items()))


def _by_id(file: Path, rows: Sequence[Any], what: str, needs: str) -> dict[Any, Any]:
    """Return rows by their ids."""
    found: dict[Any, Any] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("id"), int | str) or needs not in row:
            raise UserError(f"{file}: {what} {number} lacks id or {needs}, expected both; fix it")
        if row["id"] in found:
            a, b = found[row["id"]][needs], row[needs]
            raise UserError(
                f"{file}: two {'categories' if what == 'category' else 'images'} have the id {row['id']!r}, "
                f"{shown(str(a))!r} and {shown(str(b))!r}; expected one each, renumber them"
            )
        found[row["id"]] = row
    return found


def _place(file: Path, folder: Path, names: Sequence[str]) -> Path:
    """Return the folder that has most of the images."""
    part = _part(file)
    words = file.stem.casefold().replace(".", "_").split("_")
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []
    deeper = [path for one in inside if one.name.casefold() in ("images", "data") for path in sorted(one.iterdir())]
    named = [path for path in (*inside, *deeper) if path.is_dir() and path.name.casefold() in words]
    same = [path for path in (*inside, *deeper) if path.is_dir() and part is not None and part_of(path.name) == part]
    images = [path for path in inside if path.name.casefold() in ("images", "data")]
    places = list(dict.fromkeys([file.parent, *named, *same, *images, folder]))
    some = names[:: max(1, len(names) // 50)]

    def there(place: Path) -> int:
        return sum((place / name).exists() or (place / PurePath(name).name).exists() for name in some)

    return max(places, key=there) if any(map(there, places)) else folder


def _part(file: Path) -> int | None:
    """Return the part that the name of a file, or of its folder, says."""
    words = [*file.stem.casefold().replace(".", "_").replace("-", "_").split("_"), file.parent.name]
    return next((part for part in map(part_of, words) if part is not None), None)


def _checked(file: Path) -> dict[str, Any]:
    content = _content(file)
    if (problem := _problem(content)) is not None:
        raise UserError(f"{file} is no COCO file of boxes: {problem}")
    return content


def _problem(content: Any) -> str | None:
    """Return why a JSON file is none of COCO's, the end of a sentence."""
    if isinstance(content, Exception):
        return f"it cannot be read as JSON ({first_line(content)})"
    if isinstance(content, list) and content and isinstance(content[0], dict) and "bbox" in content[0]:
        return "it is a list of boxes, such as a detector's results, expected images, annotations and categories"
    if not isinstance(content, dict):
        return f"it holds a {type(content).__name__}, expected images, annotations and categories"
    lacks = [key for key in _LISTS if not isinstance(content.get(key), list)]
    if lacks:
        keys = ", ".join(map(str, list(content)[:6]))
        return f"it lacks {', '.join(lacks)} (it has {shown(keys) or 'nothing'})"
    notes = content["annotations"]
    if not all(isinstance(note, dict) for note in notes) or (notes and not any("bbox" in note for note in notes)):
        return "no annotation has a bbox"
    return None


def _content(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return error
