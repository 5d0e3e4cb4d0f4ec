"""Boxes in a folder of images, as COCO, YOLO or Pascal VOC writes them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lighten.data.annotated import Annotated, boxes_in_shares
from lighten.data.coco import find_coco, read_coco
from lighten.data.find_images import TRAIN, Found, existing
from lighten.data.voc import find_voc, read_voc
from lighten.data.yolo import Pair, find_yolo, read_yolo
from lighten.errors import UserError


def find_boxes(
    folder: str, *, annotations: str | None = None, classes: Sequence[str] | None = None,
    box_format: str | None = None, skip: float = 0.01, asked: bool = False,
) -> Found | None:  # fmt: skip
    """Return the images of a folder with their boxes; ``None`` where it has none.

    Args:
        folder: of the images, or of the whole data set.
        annotations: a COCO file, or a folder of text or XML files with the names of the images.
        classes: names of the classes in the order of their numbers.
        box_format: what the four numbers of a box are, of ``lighten.data.annotated.CONVENTIONS``.
        skip: share of the boxes that may have no area.
        asked: whether boxes must be there.

    Raises:
        UserError: if there must be boxes and are none, or what is there is wrong.
    """
    root = existing(folder, "folder")
    given = _named(root, Path(annotations).expanduser(), classes) if annotations is not None else _any(root, classes)
    if given is None:
        if asked:
            raise UserError(
                f"{root} has no boxes; expected COCO's JSON (train/_annotations.coco.json, annotations/*.json), YOLO's "
                "text files (images, labels) or Pascal VOC's XML (JPEGImages, Annotations); or set annotations"
            )
        return None
    if not given.files:
        raise UserError(f"{given.where} lists no images; check the path")
    if not given.values:
        raise UserError(f"{given.where}: none of {len(given.files)} images has a box; check the annotations")
    boxes = boxes_in_shares(given, box_format=box_format, skip=skip)
    there = {part for part in given.parts if part is not None}
    return Found(
        where=given.where, files=tuple(given.files), names=tuple(given.names), task="detection", why=_why(given),
        class_names=given.class_names, boxes=boxes, stated=tuple(given.sizes),
        parts=np.array([TRAIN if part is None else part for part in given.parts], np.int8) if len(there) > 1 else None,
    )  # fmt: skip


def _any(root: Path, classes: Sequence[str] | None) -> Annotated | None:
    """Return what a folder holds, by the layouts that tools write."""
    if pairs := find_yolo(root):
        return read_yolo(root, pairs, classes)
    if folders := find_voc(root):
        return read_voc(root, folders, classes)
    if files := find_coco(root):
        return read_coco(files, root, classes)
    return None


def _named(root: Path, annotations: Path, classes: Sequence[str] | None) -> Annotated:
    """Return what a file or folder of annotations holds about the images of a folder."""
    if annotations.is_file():
        return read_coco([annotations], root, classes)
    if not annotations.is_dir():
        raise UserError(
            f"annotations={annotations} is not there, expected a COCO file, or a folder of text or XML files"
        )
    if any(annotations.rglob("*.xml")):
        return read_voc(root, [(root, annotations, None)], classes)
    if any(annotations.rglob("*.txt")):
        return read_yolo(root, [Pair(root, annotations, None)], classes)
    files = sorted(annotations.glob("*.json"))
    if files:
        return read_coco(files, root, classes)
    raise UserError(f"annotations={annotations} holds no JSON, text or XML files; check the path")


def _why(given: Annotated) -> str:
    left = "".join(f", {count} {what} left out" for what, count in given.left_out.items())
    without = len(given.files) - len(set(given.images))
    return f"{given.kind}, {len(given.values)} boxes, {without} images without{left}"
