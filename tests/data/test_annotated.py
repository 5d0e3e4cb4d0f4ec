"""What may be wrong with boxes: one line each."""

import numpy as np
import pytest
from box_files import (
    changed,
    coco_folder,
    refused,
    same_corners,
    scenes,
    voc_folder,
    voc_xml,
    yolo_folder,
)

from lighten.data.annotated import corners_of
from lighten.data.find_boxes import find_boxes


def test_conventions():
    box = np.array([[0.1, 0.2, 0.3, 0.6]])
    assert corners_of(box, "xyxy").tolist() == box.tolist()
    assert np.allclose(corners_of(np.array([[0.1, 0.2, 0.2, 0.4]]), "xywh"), box)
    assert np.allclose(corners_of(np.array([[0.2, 0.4, 0.2, 0.4]]), "cxcywh"), box)


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


def test_images_that_are_missing_are_named(tmp_path):
    shown = scenes()
    yolo = yolo_folder(tmp_path / "yolo", shown, names=False)
    for root in (coco_folder(tmp_path / "coco", shown), yolo, voc_folder(tmp_path / "voc", shown)):
        for name in ("001", "002"):
            next(root.rglob(f"{name}.png")).unlink()
        said = refused(root)
        assert "2 of 12 annotated images are not there, the first is" in said
        assert "001" in said


def test_crowds_and_difficult_objects_are_left_out_and_counted(tmp_path):
    found = find_boxes(str(changed(tmp_path / "coco", lambda content: content["annotations"][0].update(iscrowd=1))))
    count = sum(len(one.boxes) for one in scenes())
    assert found.why == f"COCO, {count - 1} boxes, 1 images without, 1 crowds left out"
    folder = voc_folder(tmp_path / "voc", scenes())
    file = folder / "Annotations" / "000.xml"
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1", 1))
    assert find_boxes(str(folder)).why.endswith("1 difficult objects left out")


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
