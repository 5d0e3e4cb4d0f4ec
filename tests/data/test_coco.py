"""Boxes in COCO's JSON: conventions, classes, ids, and what is no such file."""

import json
import warnings

import pytest
from box_files import (
    changed,
    coco_folder,
    refused,
    same_corners,
    scenes,
    voc_folder,
    write_json,
    yolo_folder,
    yolo_line,
)
from picture_files import noise, write

from lighten.data.find_boxes import find_boxes


@pytest.mark.parametrize(
    ("convention", "bbox"),
    [
        ("xyxy", lambda left, top, right, bottom: [left, top, right, bottom]),
        (
            "cxcywh",
            lambda left, top, right, bottom: [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top],
        ),
    ],
)
def test_coco_in_another_convention_is_guessed_and_said(tmp_path, convention, bbox):
    shown = scenes()
    folder = coco_folder(tmp_path, shown, bbox=bbox)
    with pytest.warns(
        UserWarning, match=r"of the boxes are not within their pictures as COCO has them .*taken as that"
    ):
        same_corners(find_boxes(str(folder)), shown)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same_corners(find_boxes(str(folder), box_format=convention), shown)


def test_coco_in_shares(tmp_path):
    shown = scenes()
    folder = coco_folder(tmp_path, shown, bbox=lambda a, b, c, d: [a / 64, b / 48, (c - a) / 64, (d - b) / 48])
    with pytest.warns(UserWarning, match="boxes are in shares of their pictures, where COCO has pixels; they"):
        same_corners(find_boxes(str(folder)), shown)


def test_classes_beyond_the_count(tmp_path):
    shown = scenes()
    folder = changed(tmp_path / "coco", lambda content: content["annotations"][3].update(category_id=99))
    assert "is of category 99, expected one of categories: 11, 12" in refused(folder)
    folder = yolo_folder(tmp_path / "yolo", shown, line=lambda one, box: yolo_line(one, (10, *box[1:])))
    said = refused(folder)
    assert "labels/" in said
    assert "has class 10, expected 0 to 9 of data.yaml" in said
    folder = voc_folder(tmp_path / "voc", shown)
    assert "is not in classes" in refused(folder, classes=("cat", "dog"))


def test_ids_that_are_there_twice(tmp_path):
    def images(content):
        content["images"][1]["id"] = content["images"][0]["id"]

    def notes(content):
        content["annotations"][1]["id"] = content["annotations"][0]["id"]

    def categories(content):
        content["categories"][1]["id"] = content["categories"][0]["id"]

    def names(content):
        content["categories"][1]["name"] = content["categories"][0]["name"]

    assert "two images have the id 100, '000.png' and '001.png'" in refused(changed(tmp_path / "i", images))
    assert "two annotations have the id" in refused(changed(tmp_path / "a", notes))
    assert "two categories have the id 11, 'top' and 'trouser'" in refused(changed(tmp_path / "c", categories))
    assert "two categories have the name 'top'" in refused(changed(tmp_path / "n", names))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}], "it is a list of boxes, such as a detector's results"),
        ([1, 2], "it holds a list, expected images, annotations and categories"),
        ({"shapes": [], "imagePath": "x"}, "it lacks images, annotations, categories (it has shapes, imagePath)"),
        ({"images": [], "annotations": [{"caption": "x"}], "categories": []}, "no annotation has a bbox"),
    ],
)
def test_json_that_is_no_coco(tmp_path, content, says):
    file = write_json(tmp_path / "x.json", content)
    assert f"{file} is no COCO file of boxes: {says}" in refused(tmp_path, annotations=str(file))


def test_json_that_is_none_and_rows_that_are_none(tmp_path):
    (tmp_path / "x.json").write_text("{")
    assert "it cannot be read as JSON" in refused(tmp_path, annotations=str(tmp_path / "x.json"))
    (tmp_path / "y.json").write_text("[" * 100_000)
    assert "it cannot be read as JSON" in refused(tmp_path, annotations=str(tmp_path / "y.json"))
    for key, value, says in (
        ("bbox", [1, 2], r"has the bbox [1, 2], expected [left, top, width, height]"),
        ("bbox", None, "has the bbox None"),
        ("bbox", [1, 2, 3, "4"], "has the bbox"),
        ("image_id", 7, "is of image 7, which images do not list"),
    ):
        folder = changed(
            tmp_path / "f", lambda content, key=key, value=value: content["annotations"][0].update({key: value})
        )
        assert says in refused(folder)
    assert "image 0 lacks id or file_name" in refused(
        changed(tmp_path / "g", lambda c: c["images"][0].pop("file_name"))
    )


def test_coco_without_sizes_reads_the_heads_of_images(tmp_path):
    def change(content):
        for image in content["images"]:
            del image["width"]

    folder = changed(tmp_path, change)
    same_corners(find_boxes(str(folder)), scenes())
    write(folder / "003.png", noise(20, 20)).write_bytes(b"broken")
    same = find_boxes(str(folder))
    assert len(same.boxes[3]) == 0
    assert json.loads((folder / "annotations.json").read_text())["images"][3]["file_name"] == "003.png"
