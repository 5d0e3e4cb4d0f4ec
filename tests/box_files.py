"""Small data sets of boxes as COCO, YOLO and Pascal VOC write them, all of the same pictures."""

import json
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from picture_files import write

from lighten.data.find_boxes import find_boxes
from lighten.data.scene_data import TRAIN, marked
from lighten.errors import UserError

NAMES = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


@dataclass(frozen=True)
class Shown:
    """A picture, its name, and its boxes: class, left, top, right, bottom in pixels."""

    name: str
    pixels: np.ndarray
    boxes: list[tuple[int, int, int, int, int]]


@cache
def scenes(count=12, size=48, wide=64):
    """Scenes of embedded images on wider pictures; the last one is empty."""
    pictures, labels, _ = marked(TRAIN, count, size, 3)
    shown = []
    for number, (picture, rows) in enumerate(zip(pictures.numpy(), labels.tolist(), strict=True)):
        pixels = np.zeros((size, wide), np.uint8)
        left = number % (wide - size + 1)
        pixels[:, left : left + size] = picture[0]
        edges = [(int(c), x - w / 2, y - h / 2, x + w / 2, y + h / 2) for c, x, y, w, h in rows if c >= 0]
        boxes = [
            (c, *(round(size * at + by) for at, by in zip(box, (left, 0, left, 0), strict=True))) for c, *box in edges
        ]
        if number == count - 1:
            pixels, boxes = np.zeros_like(pixels), []
        shown.append(Shown(f"{number:03}", pixels, boxes))
    return shown


def coco_of(shown, *, bbox=lambda left, top, right, bottom: [left, top, right - left, bottom - top]):
    """Return what a COCO file holds; categories have ids 11, 12, …."""
    return {
        "info": {},
        "images": [
            {"id": 100 + n, "file_name": f"{one.name}.png", "height": len(one.pixels), "width": len(one.pixels[0])}
            for n, one in enumerate(shown)
        ],
        "categories": [{"id": 11 + n, "name": name, "supercategory": ""} for n, name in enumerate(NAMES)],
        "annotations": [
            {"id": 1000 * n + k, "image_id": 100 + n, "category_id": 11 + label, "bbox": bbox(*box), "iscrowd": 0}
            for n, one in enumerate(shown)
            for k, (label, *box) in enumerate(one.boxes)
        ],
    }  # fmt: skip


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def pictures_into(folder, shown, suffix="png"):
    for one in shown:
        write(folder / f"{one.name}.{suffix}", one.pixels)
    return folder


def coco_folder(root, shown, annotations="annotations.json", images="", **how):
    """Write one COCO file and its pictures."""
    pictures_into(root / images, shown)
    write_json(root / annotations, coco_of(shown, **how))
    return root


def yolo_line(one, box):
    height, width = one.pixels.shape[:2]
    label, left, top, right, bottom = box
    numbers = (left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height
    return f"{label} " + " ".join(f"{number:.6f}" for number in numbers)


def yolo_folder(root, shown, images="images", labels="labels", names=True, line=yolo_line):
    """Write pictures and text files; a picture without boxes has none."""
    pictures_into(root / images, shown)
    for one in shown:
        if one.boxes:
            path = root / labels / f"{one.name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(line(one, box) for box in one.boxes) + "\n")
    if names:
        (root / "data.yaml").write_text(f"train: ../train/images\nnc: {len(NAMES)}\nnames: {list(NAMES)}\n")
    return root


def voc_xml(one, names=NAMES):
    """Return what an XML file holds; pixels count from 1."""
    height, width = one.pixels.shape[:2]
    objects = "".join(
        f"<object><name>{names[label]}</name><difficult>0</difficult><bndbox><xmin>{left + 1}</xmin>"
        f"<ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for label, left, top, right, bottom in one.boxes
    )
    return (
        f"<annotation><filename>{one.name}.png</filename><size><width>{width}</width><height>{height}</height>"
        f"<depth>1</depth></size>{objects}</annotation>"
    )


def voc_folder(root, shown, images="JPEGImages", notes="Annotations"):
    """Write pictures and XML files."""
    pictures_into(root / images, shown)
    for one in shown:
        path = root / notes / f"{one.name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(voc_xml(one))
    return root


def expected(shown):
    """Return boxes by name as ``Found`` has them: name of the class, then corners in shares."""
    found = {}
    for one in shown:
        height, width = one.pixels.shape[:2]
        found[one.name] = [
            (NAMES[label], left / width, top / height, right / width, bottom / height)
            for label, left, top, right, bottom in one.boxes
        ]
    return found


def found_boxes(found):
    """Return what was found, in the same form."""
    return {
        name.rsplit("/", 1)[-1].rsplit(".", 1)[0]: [
            (found.class_names[int(c)], *corners) for c, *corners in rows.tolist()
        ]
        for name, rows in zip(found.names, found.boxes, strict=True)
    }


def refused(folder, **options):
    """Return the one line with which a folder of boxes is refused."""
    with pytest.raises(UserError) as caught:
        find_boxes(str(folder), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(root, change):
    """Write a COCO folder of which ``change`` alters what the file holds."""
    shown = scenes()
    coco_folder(root, shown)
    content = coco_of(shown)
    change(content)
    write_json(root / "annotations.json", content)
    return root


def same_corners(found, shown):
    """Assert that what was found are the boxes of ``shown``."""
    ours, theirs = found_boxes(found), expected(shown)
    for name, boxes in theirs.items():
        assert np.allclose([row[1:] for row in ours[name]], [row[1:] for row in boxes], atol=1e-5) or not boxes
