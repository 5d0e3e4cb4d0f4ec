"""Boxes stay around what they are around, wherever their pictures are moved."""

import json

import numpy as np
import pytest
import torch
from box_files import NAMES, Shown, coco_folder, coco_of, scenes, voc_folder, write_json, yolo_folder
from PIL import Image

from lighten.data import build_data
from lighten.data.decode import Frame, decode, placed
from lighten.data.preprocessing import reader_of
from lighten.errors import UserError
from lighten.tasks import build_task


def rectangles(count=24):
    """Black pictures of many shapes, each with one bright rectangle."""
    draw = np.random.default_rng(1)
    shown = []
    for number in range(count):
        height, width = (int(side) for side in draw.integers(60, 160, 2))
        left, top = int(draw.integers(0, width // 2)), int(draw.integers(0, height // 2))
        right, bottom = left + int(draw.integers(20, width // 2)), top + int(draw.integers(20, height // 2))
        pixels = np.zeros((height, width), np.uint8)
        pixels[top:bottom, left:right] = 255
        shown.append(Shown(f"{number:03}", pixels, [(1, left, top, right, bottom)]))
    return shown


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return coco_folder(tmp_path_factory.mktemp("rectangles"), rectangles())


def module(folder, **options):
    data = build_data("images", folder=str(folder), **{"batch_size": 4, "size": 64, "colour": 0.0} | options)
    data.prepare_data()
    data.setup("fit")
    return data


def check_tight(data, part, epochs=(0,), slack=1.0, least=0):
    """Compare each box with the bright pixels of its image, as far as these are seen."""
    size = data.input_shape[1:]
    boxes = 0
    for epoch in epochs:
        images, labels = part.__getitems__([(epoch, sample) for sample in range(len(part))])
        assert (labels.dtype, labels.shape[2]) == (torch.float32, 5)
        for image, rows in zip(images, labels, strict=True):
            bright = (image[0] * data.std[0] + data.mean[0] > 0.5).numpy()
            rows = rows[rows[:, 0] >= 0]
            if not len(rows):
                continue
            boxes += 1
            ((name, x, y, w, h),) = rows.tolist()
            assert name == 1
            found = [size[1] * (x - w / 2), size[0] * (y - h / 2), size[1] * (x + w / 2), size[0] * (y + h / 2)]
            ys, xs = bright.any(1).nonzero()[0], bright.any(0).nonzero()[0]
            expected = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else [0, 0, 0, 0]
            assert np.abs(np.array(found) - expected).max() <= slack
    assert boxes >= least
    return boxes


@pytest.mark.parametrize("resize", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("size", [64, [48, 80]])
def test_boxes_are_where_things_are_in_what_is_shown(folder, resize, size):
    data = module(folder, resize=resize, size=size, augment=False)
    assert sum(check_tight(data, part) for part in (data.train_set, data.val_set, data.test_set)) >= 20


@pytest.mark.parametrize(
    "options", [{"crop": 1.0, "flip": True}, {"crop": 0.3, "flip": False}, {"crop": 0.4, "flip": True}]
)
def test_boxes_move_with_their_pictures(folder, options):
    data = module(folder, **options)
    boxes = check_tight(data, data.train_set, range(8), slack=1.6)
    assert 60 < boxes <= 8 * len(data.train_set)
    first, later = (data.train_set.__getitems__([(epoch, n) for n in range(8)])[1] for epoch in (0, 1))
    assert not torch.equal(first, later)
    assert torch.equal(first, data.train_set.__getitems__([(0, n) for n in range(8)])[1])


def test_where_a_picture_lies_in_a_frame_is_where_it_is_painted():
    for size in ((30, 90), (90, 30), (64, 64), (100, 37)):
        for resize in ("pad", "crop", "stretch"):
            frame = Frame((64, 48), resize, 1)
            ramp = np.round(np.linspace(0, 255, size[1]))[None].repeat(size[0], 0).astype(np.uint8)
            shown = decode(Image.fromarray(ramp), frame)[32, :, 0].astype(float)
            left, top, width, height = placed(size, frame)
            centres = ((np.arange(48) + 0.5) / 48 - left) / width
            inside = (centres > 0.08) & (centres < 0.92)
            assert np.abs(shown - 255 * centres)[inside].max() < 255 / size[1] + 6
            whole = left >= -1e-9 and top >= -1e-9 and left + width <= 1 + 1e-9 and top + height <= 1 + 1e-9
            assert whole == (resize != "crop" or (size[0] / size[1] == 64 / 48))


def test_facts_of_boxes(tmp_path, capsys):
    shown = scenes()
    data = build_data("images", folder=str(yolo_folder(tmp_path, shown)), batch_size=4, matches=3, nms=0.5, colour=0.0)
    data.prepare_data()
    data.setup("fit")
    assert data.task == build_task("detection", matches=3, nms=0.5)
    assert (data.class_names, data.num_classes, data.input_shape) == (NAMES, 10, (1, 48, 64))
    most = max(len(one.boxes) for one in shown)
    images, labels = next(iter(data.train_dataloader()))
    assert (tuple(images.shape), tuple(labels.shape), labels.dtype) == ((4, 1, 48, 64), (4, most, 5), torch.float32)
    empty = [n for n, row in enumerate(data.prepared.found.names) if "011" in row]
    assert data.prepared.boxes[empty].tolist() == [[[-1.0, 0, 0, 0, 0]] * most]
    said = capsys.readouterr().out
    assert "detection (YOLO, " in said
    assert "10 classes; 48×64 grey by pad" in said
    assert {label for row in labels[..., 0].tolist() for label in row} <= {*range(-1, 10)}


def test_the_same_pictures_in_three_formats_are_the_same_batches(tmp_path):
    shown = scenes()
    folders = coco_folder(tmp_path / "c", shown), yolo_folder(tmp_path / "y", shown), voc_folder(tmp_path / "v", shown)
    batches = [module(folder, classes=NAMES).train_set.__getitems__([(1, n) for n in range(8)]) for folder in folders]

    def boxes(labels):
        return [sorted(row for row in rows if row[0] >= 0) for rows in labels.tolist()]

    by_image = [
        {image.numpy().tobytes(): rows for image, rows in zip(images, boxes(labels), strict=True)}
        for images, labels in batches
    ]
    for other in by_image[1:]:
        assert other.keys() == by_image[0].keys()
        for key, rows in by_image[0].items():
            assert np.allclose(rows, other[key], atol=1e-5) or not rows


def test_fingerprint_hangs_on_boxes(tmp_path):
    shown = scenes()
    same = {
        module(coco_folder(tmp_path / place, shown), **more).fingerprint
        for place, more in (("a", {}), ("b", {"seed": 4}))
    }
    assert len(same) == 1
    content = coco_of(shown)
    content["annotations"][0]["bbox"][2] -= 1
    write_json(tmp_path / "a" / "annotations.json", content)
    assert module(tmp_path / "a").fingerprint not in same


def test_a_reader_makes_the_same_of_files_as_the_test_part_has(folder):
    data = module(folder)
    settings = json.loads(json.dumps(data.preprocessing()))
    assert settings["resize"] == "pad"
    files = [data.prepared.found.files[row] for row in data.prepared.of(2)]
    (images,), _ = reader_of(settings).read(files)
    assert torch.equal(images[:4], next(iter(data.test_dataloader()))[0])


def test_options_that_do_not_fit(folder, tmp_path):
    with pytest.raises(UserError, match="mixup and cutmix mix pictures, and boxes cannot be mixed"):
        module(folder, mixup=0.5)
    for options, says in (
        ({"nms": 0.5, "masks": "x"}, "nms is of boxes, which need folder alone"),
        ({"annotations": "x", "task": "classification"}, "annotations is of boxes"),
        ({"box_format": "xywz"}, "box_format='xywz'; did you mean"),
    ):
        with pytest.raises(UserError, match=says):
            build_data("images", folder=str(folder), **options)
    (tmp_path / "cat").mkdir()
    with pytest.raises(UserError, match="has no boxes"):
        module(tmp_path, task="detection")


def test_pictures_of_another_shape_than_their_boxes_are_of(tmp_path):
    shown = rectangles(12)
    folder = coco_folder(tmp_path, shown)
    for scale, fits in ((0.5, True), (2, True)):
        content = coco_of(shown, bbox=lambda a, b, c, d, s=scale: [s * a, s * b, s * (c - a), s * (d - b)])
        for image in content["images"]:
            image["width"], image["height"] = round(scale * image["width"]), round(scale * image["height"])
        write_json(folder / "annotations.json", content)
        assert (
            check_tight(module(folder, augment=False), module(folder, augment=False).train_set, slack=2) > 5
        ) == fits
    content = coco_of(shown)
    wide = next(image for image in content["images"] if image["width"] > 1.3 * image["height"])
    wide["width"], wide["height"] = wide["height"], wide["width"]
    write_json(folder / "annotations.json", content)
    with pytest.raises(
        UserError, match=rf"1 of 12 images have another shape .* the first is {wide['file_name']}: .* EXIF"
    ):
        module(folder)
