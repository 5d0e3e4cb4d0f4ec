"""The same pictures and boxes in every layout that tools write."""

import numpy as np
import pytest
from box_files import (
    NAMES,
    coco_folder,
    coco_of,
    expected,
    found_boxes,
    pictures_into,
    scenes,
    voc_folder,
    voc_xml,
    write_json,
    yolo_folder,
)

from lighten.data.find_boxes import find_boxes
from lighten.data.find_images import TEST, TRAIN, VALIDATION
from lighten.errors import UserError

PARTS = {"train": slice(0, 7), "valid": slice(7, 10), "test": slice(10, 12)}
NUMBERS = [TRAIN] * 7 + [VALIDATION] * 3 + [TEST] * 2


def agree(found, shown, parts=None):
    ours, theirs = found_boxes(found), expected(shown)
    assert ours.keys() == theirs.keys()
    for name, boxes in theirs.items():
        assert sorted(row[0] for row in ours[name]) == sorted(row[0] for row in boxes)
        assert (
            np.allclose(sorted(row[1:] for row in ours[name]), sorted(row[1:] for row in boxes), atol=2e-6) or not boxes
        )
    order = sorted(range(len(found.names)), key=lambda row: found.names[row].rsplit("/", 1)[-1])
    assert (None if found.parts is None else found.parts[order].tolist()) == parts
    assert found.task == "detection"


def test_coco_as_it_is_published(tmp_path):
    shown = scenes()
    for name, part in (("train2017", PARTS["train"]), ("val2017", slice(7, 12))):
        coco_folder(tmp_path, shown[part], f"annotations/instances_{name}.json", name)
        write_json(tmp_path / f"annotations/captions_{name}.json", {"images": [], "annotations": []})
        write_json(tmp_path / f"annotations/person_keypoints_{name}.json", coco_of([]))
    agree(find_boxes(str(tmp_path)), shown, [TRAIN] * 7 + [VALIDATION] * 5)


def test_coco_as_roboflow_exports_it(tmp_path):
    shown = scenes()
    for name, part in PARTS.items():
        coco_folder(tmp_path, shown[part], f"{name}/_annotations.coco.json", name)
    found = find_boxes(str(tmp_path))
    agree(found, shown, NUMBERS)
    assert found.class_names == NAMES
    assert found.why == f"COCO, {sum(len(one.boxes) for one in shown)} boxes, 1 images without"


@pytest.mark.parametrize("images", ["images", "", "images/train"])
def test_one_coco_file(tmp_path, images):
    shown = scenes()
    coco_folder(tmp_path, shown, "annotations/train.json", images)
    agree(find_boxes(str(tmp_path)), shown)


def test_a_coco_file_elsewhere(tmp_path):
    shown = scenes()
    pictures_into(tmp_path / "pictures" / "deep", shown)
    file = write_json(tmp_path / "notes.json", coco_of(shown))
    agree(find_boxes(str(tmp_path / "pictures" / "deep"), annotations=str(file)), shown)


def test_yolo_as_ultralytics_has_it(tmp_path):
    shown = scenes()
    for name, part in PARTS.items():
        yolo_folder(tmp_path, shown[part], f"images/{name}", f"labels/{name}")
    agree(find_boxes(str(tmp_path)), shown, NUMBERS)


def test_yolo_as_roboflow_exports_it(tmp_path):
    shown = scenes()
    for name, part in PARTS.items():
        yolo_folder(tmp_path, shown[part], f"{name}/images", f"{name}/labels")
    (tmp_path / "README.roboflow.txt").write_text("exported")
    agree(find_boxes(str(tmp_path)), shown, NUMBERS)


def test_yolo_in_two_folders_and_beside_its_images(tmp_path):
    shown = scenes()
    agree(find_boxes(str(yolo_folder(tmp_path / "two", shown))), shown)
    beside = yolo_folder(tmp_path / "beside", shown, "", "", names=False)
    assert find_boxes(str(beside)) is None
    (beside / "classes.txt").write_text("\n".join(NAMES))
    agree(find_boxes(str(beside)), shown)
    agree(
        find_boxes(str(tmp_path / "two" / "images"), annotations=str(tmp_path / "two" / "labels"), classes=NAMES), shown
    )


def test_yolo_where_its_file_says(tmp_path):
    shown = scenes()
    for name, part in (("first", PARTS["train"]), ("second", slice(7, 12))):
        yolo_folder(tmp_path, shown[part], f"{name}/images/day", f"{name}/labels/day", names=False)
    names = f"names: {list(NAMES)}\n"
    (tmp_path / "mine.yaml").write_text(f"train: ../first/images/day\nval: [second/images/day]\n{names}")
    agree(find_boxes(str(tmp_path)), shown, [TRAIN] * 7 + [VALIDATION] * 5)
    (tmp_path / "mine.yaml").write_text(f"path: first\ntrain: images/day\nval: images/day\n{names}")
    agree(find_boxes(str(tmp_path)), shown[:7])


def test_pascal_voc(tmp_path):
    shown = scenes()
    voc_folder(tmp_path, shown)
    found = find_boxes(str(tmp_path))
    agree(found, shown)
    assert found.class_names == tuple(sorted({NAMES[box[0]] for one in shown for box in one.boxes}))
    for name, part in (("train", PARTS["train"]), ("val", PARTS["valid"]), ("test", PARTS["test"])):
        file = tmp_path / "ImageSets" / "Main" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{one.name}\n" for one in shown[part]))
    agree(find_boxes(str(tmp_path), classes=NAMES), shown, NUMBERS)


def test_pascal_voc_beside_its_images_as_roboflow_exports_it(tmp_path):
    shown = scenes()
    for name, part in PARTS.items():
        voc_folder(tmp_path, shown[part], name, name)
    agree(find_boxes(str(tmp_path)), shown, NUMBERS)


def test_what_has_no_boxes(tmp_path):
    pictures_into(tmp_path / "cat", scenes()[:2])
    (tmp_path / "notes.json").write_text("{}")
    assert find_boxes(str(tmp_path)) is None
    with pytest.raises(UserError, match=r"has no boxes; expected COCO's JSON"):
        find_boxes(str(tmp_path), asked=True)
    with pytest.raises(UserError, match=r"annotations=nowhere is not there"):
        find_boxes(str(tmp_path), annotations="nowhere")
    with pytest.raises(UserError, match=r"holds no JSON, text or XML files"):
        find_boxes(str(tmp_path), annotations=str(tmp_path / "cat"))
    empty = coco_folder(tmp_path / "empty", scenes()[-1:])
    with pytest.raises(UserError, match="none of 1 images has a box"):
        find_boxes(str(empty))


def test_an_order_of_classes_is_taken_by_name(tmp_path):
    shown = scenes()
    order = tuple(reversed(NAMES))
    for folder in (
        coco_folder(tmp_path / "c", shown),
        yolo_folder(tmp_path / "y", shown),
        voc_folder(tmp_path / "v", shown),
    ):
        found = find_boxes(str(folder), classes=order)
        assert found.class_names == order
        agree(found, shown)
        with pytest.raises(UserError, match="is not in classes"):
            find_boxes(str(folder), classes=("boot",))


def test_xml_is_not_trusted(tmp_path):
    shown = scenes()[:2]
    folder = voc_folder(tmp_path, shown)
    (folder / "Annotations" / "000.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]>' + voc_xml(shown[0]))
    with pytest.raises(UserError, match=r"000\.xml cannot be read as XML \(it declares entities\)"):
        find_boxes(str(folder))
