"""Boxes in YOLO's text files: units, lines, polygons, names."""

import pytest
from box_files import (
    NAMES,
    refused,
    same_corners,
    scenes,
    yolo_folder,
)

from lighten.data.find_boxes import find_boxes


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
