"""What may be wrong with boxes: one line each."""

import json
import warnings

import numpy as np
import pytest
from box_files import (
    NAMES,
    coco_folder,
    coco_of,
    expected,
    found_boxes,
    scenes,
    voc_folder,
    voc_xml,
    write_json,
    yolo_folder,
    yolo_line,
)
from picture_files import noise, write

from lighten.data.annotated import corners_of
from lighten.data.find_boxes import find_boxes
from lighten.errors import UserError


def refused(folder, **options):
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


def same_corners(found, shown, left_out=()):
    ours, theirs = found_boxes(found), expected(shown)
    for name, boxes in theirs.items():
        assert np.allclose([row[1:] for row in ours[name]], [row[1:] for row in boxes], atol=1e-5) or not boxes


def test_conventions():
    box = np.array([[0.1, 0.2, 0.3, 0.6]])
    assert corners_of(box, "xyxy").tolist() == box.tolist()
    assert np.allclose(corners_of(np.array([[0.1, 0.2, 0.2, 0.4]]), "xywh"), box)
    assert np.allclose(corners_of(np.array([[0.2, 0.4, 0.2, 0.4]]), "cxcywh"), box)


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


def test_yolo_in_pixels_and_in_corners(tmp_path):
    shown = scenes()

    def pixels(one, box):
        label, left, top, right, bottom = box
        return f"{label} {(left + right) / 2} {(top + bottom) / 2} {right - left} {bottom - top}"

    def corners(one, box):
        label, left, top, right, bottom = box
        return f"{label} {left / 64} {top / 48} {right / 64} {bottom / 48}"

    with pytest.warns(UserWarning, match="boxes are in pixels, where YOLO has shares of their pictures"):
        same_corners(find_boxes(str(yolo_folder(tmp_path / "pixels", shown, line=pixels))), shown)
    folder = yolo_folder(tmp_path / "corners", shown, line=corners)
    with pytest.warns(UserWarning, match=r"as YOLO has them \(centre x.* are as left, top, right, bottom; they are"):
        same_corners(find_boxes(str(folder)), shown)


def test_what_fits_in_two_ways_is_asked_about(tmp_path):
    shown = scenes()
    folder = coco_folder(tmp_path, shown, bbox=lambda *box: [40, 30, 46, 34])
    assert "set box_format: xyxy or cxcywh" in refused(folder)


def test_boxes_that_stick_out_are_cut_and_counted(tmp_path):
    def change(content):
        content["annotations"][1]["bbox"] = [-8, 12, 24, 60]

    folder = changed(tmp_path, change)
    with pytest.warns(
        UserWarning, match=r"1 of \d+ boxes stick out .* annotation \S+ of annotations\.json \(-8, 12, 24, 60"
    ):
        found = find_boxes(str(folder))
    image = found.names.index("000.png") if len(scenes()[0].boxes) > 1 else found.names.index("001.png")
    rows = found.boxes[image][:, 1:]
    assert any(np.allclose(row, [0, 0.25, 0.25, 1]) for row in rows)


@pytest.mark.parametrize("bbox", [[5, 5, 0, 9], [5, 5, 9, -2], [70, 5, 9, 9], [float("nan"), 1, 2, 3]])
def test_boxes_without_area_are_refused_or_left_out(tmp_path, bbox):
    def change(content):
        content["annotations"][2]["bbox"] = bbox

    folder = changed(tmp_path, change)
    said = refused(folder)
    assert "1 of" in said
    assert "have no area within their picture, the first is annotation" in said
    with pytest.warns(UserWarning, match="they are left out"):
        found = find_boxes(str(folder), skip=0.2)
    assert sum(map(len, found.boxes)) == sum(len(one.boxes) for one in scenes()) - 1


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


def test_images_that_are_missing_are_named(tmp_path):
    shown = scenes()
    yolo = yolo_folder(tmp_path / "yolo", shown, names=False)
    for root in (coco_folder(tmp_path / "coco", shown), yolo, voc_folder(tmp_path / "voc", shown)):
        for name in ("001", "002"):
            next(root.rglob(f"{name}.png")).unlink()
        said = refused(root)
        assert "2 of 12 annotated images are not there, the first is" in said
        assert "001" in said


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


def test_crowds_and_difficult_objects_are_left_out_and_counted(tmp_path):
    found = find_boxes(str(changed(tmp_path / "coco", lambda content: content["annotations"][0].update(iscrowd=1))))
    count = sum(len(one.boxes) for one in scenes())
    assert found.why == f"COCO, {count - 1} boxes, 1 images without, 1 crowds left out"
    folder = voc_folder(tmp_path / "voc", scenes())
    file = folder / "Annotations" / "000.xml"
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1", 1))
    assert find_boxes(str(folder)).why.endswith("1 difficult objects left out")


@pytest.mark.parametrize(
    "line",
    [
        "0 0.5 0.5 0.1", "cat 0.5 0.5 0.1 0.1", "0.5 0.5 0.5 0.1 0.1", "-1 0.5 0.5 0.1 0.1", "0 0.5 0.5 nan 0.1",
        "0 1 2 3 4 5",
    ],
)  # fmt: skip
def test_lines_that_are_no_box(tmp_path, line):
    folder = yolo_folder(tmp_path, scenes())
    file = folder / "labels" / "003.txt"
    file.write_text(f"\n{line}\n")
    said = refused(folder)
    assert "labels/003.txt line 2 is" in said
    assert "expected a class's number, centre x, centre y, width and height" in said


def test_polygons_are_taken_as_the_boxes_around_them(tmp_path):
    shown = scenes()

    def polygon(one, box):
        label, left, top, right, bottom = box
        x, y = (left + right) / 2, (top + bottom) / 2
        points = [(left, y), (x, top), (right, y), (x, bottom)]
        return f"{label} " + " ".join(f"{a / 64:.7f} {b / 48:.7f}" for a, b in points)

    same_corners(find_boxes(str(yolo_folder(tmp_path, shown, line=polygon))), shown)


def test_names_of_yolo(tmp_path):
    shown = scenes()
    folder = yolo_folder(tmp_path, shown, names=False)
    assert find_boxes(str(folder)).class_names == tuple(
        map(str, range(1 + max(b[0] for one in shown for b in one.boxes)))
    )
    assert find_boxes(str(folder), classes=NAMES).class_names == NAMES
    (folder / "data.yaml").write_text("names:\n" + "".join(f"  {n}: {name}\n" for n, name in enumerate(NAMES)))
    assert find_boxes(str(folder)).class_names == NAMES
    (folder / "data.yaml").write_text("names: {1: a, 5: b}\n")
    assert "names are numbered [1, 5], expected 0 to 1" in refused(folder)


def test_voc_that_is_not_whole(tmp_path):
    folder = voc_folder(tmp_path, scenes())
    file = folder / "Annotations" / "000.xml"
    whole = voc_xml(scenes()[0])
    for text, says in (
        ("<annotation>", "000.xml cannot be read as XML"),
        ("<html></html>", "000.xml holds 'html', expected Pascal VOC's annotation"),
        (whole.replace("<xmax>", "<xmax>x", 1), "lacks a name or xmin, ymin, xmax, ymax"),
        (whole.replace("<name>", "<nom>", 1).replace("</name>", "</nom>", 1), "lacks a name or"),
    ):
        file.write_text(text)
        assert says in refused(folder)


def test_pixels_of_voc_that_count_from_zero(tmp_path):
    shown = scenes()
    folder = voc_folder(tmp_path, shown)
    moved = [box for one in shown for box in one.boxes]
    for one in shown:
        boxes = [(label, left - 1, top - 1, right, bottom) for label, left, top, right, bottom in one.boxes]
        (folder / "Annotations" / f"{one.name}.xml").write_text(voc_xml(type(one)(one.name, one.pixels, boxes)))
    assert min(min(box[1], box[2]) for box in moved) == 0
    same_corners(find_boxes(str(folder)), shown)


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
