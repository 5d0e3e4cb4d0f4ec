import numpy as np
import pyarrow as pa
import pytest
from picture_files import class_folder, clothes_folder, noise, pair_folder, truncate, write
from PIL import Image
from pyarrow import parquet

from lighten.data.decode import Frame, decode, open_image
from lighten.data.find_images import TEST, TRAIN, VALIDATION, find_in_folder
from lighten.data.frame import Looks
from lighten.data.image_table import find_in_table
from lighten.data.prepared_images import PreparedImages, Wishes, mean_and_std
from lighten.errors import UserError


def prepared(folder, *, size=None, resize="crop", masks=None, targets=None, **wishes):
    looks = Looks(size, resize, None, 65535)
    return PreparedImages(lambda: find_in_folder(str(folder), masks=masks, targets=targets), looks, Wishes(**wishes))


def of_table(tmp_path, columns, **options):
    count = len(next(iter(columns.values())))
    names = [f"{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        write(tmp_path / name, noise(6, 6, seed=number))
    parquet.write_table(pa.table({"image": names, **columns}), tmp_path / "t.parquet")
    given = {
        "folder": None, "image_column": "image", "label_column": None, "label_columns": (), "group_column": None,
        "classes": None, "task": None,
    }  # fmt: skip
    looks = Looks(None, "crop", None, 65535)
    find = lambda: find_in_table(str(tmp_path / "t.parquet"), **given | options)  # noqa: E731
    return PreparedImages(find, looks, Wishes(unit="years"))


def names_of(images, part):
    return [images.found.names[row] for row in images.of(part)]


def test_the_split_depends_on_what_images_are_not_on_their_names_or_place(tmp_path):
    first = prepared(clothes_folder(tmp_path / "a", 100))
    moved = tmp_path / "b"
    for place, name in enumerate(reversed(first.found.names)):
        target = moved / name.split("/")[0] / f"{place:03}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((tmp_path / "a" / name).read_bytes())
    second = prepared(moved)
    for part in (TRAIN, VALIDATION, TEST):
        contents = [
            {(root / name).read_bytes() for name in names_of(images, part)}
            for root, images in ((tmp_path / "a", first), (moved, second))
        ]
        assert contents[0] == contents[1]
        assert contents[0]


def test_copies_of_an_image_are_in_one_part(tmp_path):
    class_folder(tmp_path, {"a": 20, "b": 20})
    for number in range(20):
        (tmp_path / "a" / f"copy{number}.png").write_bytes((tmp_path / "a" / f"{number}.png").read_bytes())
    images = prepared(tmp_path)
    part = dict(zip(images.found.names, images.parts.tolist(), strict=True))
    assert all(part[f"a/copy{number}.png"] == part[f"a/{number}.png"] for number in range(20))
    assert np.bincount(images.parts).min() >= 6


def test_parts_by_folder_and_what_is_missing_by_share(tmp_path):
    class_folder(tmp_path / "train", {"a": 20, "b": 20})
    class_folder(tmp_path / "test", {"a": 3, "b": 1}, first=100)
    images = prepared(tmp_path)
    assert names_of(images, TEST) == ["test/a/0.png", "test/a/1.png", "test/a/2.png", "test/b/0.png"]
    assert len(names_of(images, VALIDATION)) == 6
    assert all(name.startswith("train") for name in names_of(images, VALIDATION))


def test_a_test_image_that_is_trained_on_is_told(tmp_path):
    class_folder(tmp_path / "train", {"a": 20, "b": 20})
    class_folder(tmp_path / "test", {"a": 3, "b": 1})
    with pytest.warns(UserWarning, match="4 images are copies of others in other parts, such as test/a/0.png of"):
        _ = prepared(tmp_path).parts


def test_groups_stay_together(tmp_path):
    people = [f"person {number % 12}" for number in range(60)]
    images = of_table(tmp_path, {"label": ["a", "b"] * 30, "who": people}, group_column="who")
    parts = [{people[row] for row in images.of(part)} for part in (TRAIN, VALIDATION, TEST)]
    assert sorted(map(len, parts)) == [2, 2, 8]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    lone = of_table(tmp_path / "lone", {"label": ["a", "b"] * 5, "who": ["ann"] * 10}, group_column="who")
    with pytest.raises(UserError, match="1 different groups, too few to take"):
        _ = lone.parts


def test_statistics_are_those_of_the_training_images_to_the_last_bits(tmp_path):
    images = prepared(clothes_folder(tmp_path, 100))
    frame = Frame((28, 28), "crop", 1)
    pixels = np.stack([decode(open_image(images.found.files[row]), frame) for row in images.of(TRAIN)]) / 255
    mean, std = images.statistics
    assert mean == pytest.approx((pixels.mean(),), abs=1e-12)
    assert std == pytest.approx((pixels.std(),), abs=1e-12)


def test_images_of_one_colour_have_a_deviation():
    sums = np.array([[[510, 65025 * 2]], [[0, 0]]])
    assert mean_and_std(sums[:1], Frame((1, 2), "crop", 1)) == ((1.0,), (1 / 255,))
    assert mean_and_std(sums, Frame((1, 2), "crop", 1)) == ((0.5,), (0.5,))


def test_task_of_numbers_has_their_mean_deviation_and_unit(tmp_path):
    numbers = np.linspace(-3, 5, 20)
    images = of_table(tmp_path, {"age": numbers, "same": [1.0] * 19 + [2.0]}, label_columns=("age", "same"))
    train = images.of(TRAIN)
    assert (images.task.name, images.task.unit) == ("regression", "years")
    assert images.task.mean[0] == pytest.approx(numbers[train].mean())
    assert images.task.std[0] == pytest.approx(numbers[train].std())
    assert images.task.std[1] > 0


def test_task_of_masks_and_their_classes(tmp_path):
    images = prepared(pair_folder(tmp_path))
    assert images.task.settings() == {"name": "segmentation", "ignored": 255}
    assert images.class_names == ("0", "1", "2")
    named = prepared(tmp_path, classes=("sky", "road", "car", "dog"))
    assert named.class_names == ("sky", "road", "car", "dog")
    with pytest.raises(UserError, match="the mask holds 2, expected 0 to 1"):
        _ = prepared(tmp_path, classes=("sky", "road")).class_names
    binary = pair_folder(tmp_path / "binary", values=(0, 255))
    assert prepared(binary, mask_values=[0, 255]).class_names == ("0", "255")


def test_task_of_pictures_has_their_mean_and_deviation(tmp_path):
    images = prepared(pair_folder(tmp_path, second="targets"))
    pixels = np.stack([np.asarray(Image.open(images.found.seconds[row])) for row in images.of(TRAIN)]) / 255
    assert images.class_names == ("red", "green", "blue")
    assert images.task.mean == pytest.approx(pixels.mean((0, 1, 2)))
    assert images.task.std == pytest.approx(pixels.std((0, 1, 2)))


def test_a_class_that_has_no_image_left_or_one_is_refused(tmp_path):
    class_folder(tmp_path, {"a": 30, "b": 1})
    with pytest.raises(UserError, match="class 'b' has one image"):
        _ = prepared(tmp_path).found
    write(tmp_path / "b" / "1.png", noise())
    truncate(tmp_path / "b" / "1.png")
    with (
        pytest.warns(UserWarning, match=r"1 of 32 images cannot be read: b/1\.png"),
        pytest.raises(UserError, match="class 'b' has one image"),
    ):
        _ = prepared(tmp_path, skip_broken=0.1).parts


def test_broken_images_are_in_no_part(tmp_path):
    class_folder(tmp_path, {"a": 60, "b": 60})
    truncate(tmp_path / "b" / "7.png")
    images = prepared(tmp_path)
    with pytest.warns(UserWarning, match="1 of 120 images cannot be read"):
        assert len(images.parts) == 119
    assert "b/7.png" not in [name for part in (TRAIN, VALIDATION, TEST) for name in names_of(images, part)]
    truncate(tmp_path / "b" / "8.png")
    with pytest.raises(UserError, match="2 of 120 images cannot be read"):
        _ = prepared(tmp_path).parts


def test_another_task_than_is_there_is_refused(tmp_path):
    class_folder(tmp_path, {"a": 2, "b": 2})
    with pytest.raises(UserError, match=r"task=regression, and .* is for classification \(a folder a class\)"):
        _ = prepared(tmp_path, task="regression").found


@pytest.mark.parametrize(
    ("wishes", "line"),
    [
        ({"test": 0.5, "validation": 0.5}, "expected shares above 0 that leave a training part"),
        ({"test": 0}, "expected shares above 0"),
        ({"skip_broken": 1.0}, r"skip_broken=1\.0, expected a share"),
        ({"mask_values": [0, 256]}, r"mask_values=\[0, 256\], expected different whole numbers from 0 to 255"),
        ({"mask_values": [0, 0]}, "expected different whole numbers"),
        ({"mask_values": [0, 1], "classes": ("a",)}, "1 classes and 2 mask_values, expected as many"),
        ({"mask_values": [0, 255], "resize": "pad"}, "resize=pad fills masks with 255"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path, wishes, line):
    with pytest.raises(UserError, match=line):
        prepared(tmp_path, **wishes)
