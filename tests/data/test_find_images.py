import numpy as np
import pytest
from picture_files import class_folder, noise, pair_folder, write

from lighten.data.find_images import TEST, TRAIN, VALIDATION, class_order, find_in_folder, image_files
from lighten.errors import UserError


def test_a_folder_a_class(tmp_path):
    class_folder(tmp_path, {"dog": 2, "cat": 1, "ünïcode 猫": 1})
    write(tmp_path / "cat" / "deeper" / "x.BMP", noise())
    for name in (".hidden.png", "Thumbs.db", "notes.txt"):
        (tmp_path / "cat" / name).write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    found = find_in_folder(str(tmp_path))
    assert found.class_names == ("cat", "dog", "ünïcode 猫")
    assert found.names == ("cat/0.png", "cat/deeper/x.BMP", "dog/0.png", "dog/1.png", "ünïcode 猫/0.png")
    assert found.labels.tolist() == [0, 0, 1, 1, 2]
    assert (found.task, found.parts) == ("classification", None)


def test_names_that_are_numbers_are_sorted_as_numbers(tmp_path):
    class_folder(tmp_path, {str(name): 1 for name in range(300)}, height=2, width=2)
    assert find_in_folder(str(tmp_path)).class_names == tuple(map(str, range(300)))


def test_order_of_classes_can_be_given(tmp_path):
    class_folder(tmp_path, {"a": 1, "b": 2})
    found = find_in_folder(str(tmp_path), classes=("b", "a"))
    assert found.class_names == ("b", "a")
    assert found.labels.tolist() == [1, 0, 0]
    with pytest.raises(UserError, match=r"class 'b' is not in classes; .*Choices: a, c"):
        find_in_folder(str(tmp_path), classes=("a", "c"))


@pytest.mark.parametrize("validation", ["val", "valid", "Validation"])
def test_parts_by_folder(tmp_path, validation):
    class_folder(tmp_path / "train", {"a": 2, "b": 1})
    class_folder(tmp_path / validation, {"a": 1})
    class_folder(tmp_path / "test", {"b": 1})
    found = find_in_folder(str(tmp_path))
    assert sorted(zip(found.names, found.parts.tolist(), found.labels.tolist(), strict=True)) == sorted([
        ("train/a/0.png", TRAIN, 0), ("train/a/1.png", TRAIN, 0), ("train/b/0.png", TRAIN, 1),
        (f"{validation}/a/0.png", VALIDATION, 0), ("test/b/0.png", TEST, 1),
    ])  # fmt: skip


def test_classes_may_be_called_train_or_test(tmp_path):
    class_folder(tmp_path, {"train": 1, "bus": 1})
    assert find_in_folder(str(tmp_path)).class_names == ("bus", "train")


def test_images_and_masks_by_equal_names(tmp_path):
    pair_folder(tmp_path, 3)
    for found in (
        find_in_folder(str(tmp_path)),
        find_in_folder(str(tmp_path / "images"), masks=str(tmp_path / "masks")),
    ):
        assert (found.task, found.labels) == ("segmentation", None)
        assert found.names == ("0.jpg", "1.jpg", "2.jpg")
        assert [second.rsplit("/", 1)[1] for second in found.seconds] == ["0.png", "1.png", "2.png"]


def test_masks_below_the_folder_of_images_are_no_images(tmp_path):
    write(tmp_path / "a.jpg", noise())
    write(tmp_path / "masks" / "a.png", noise(channels=1))
    assert find_in_folder(str(tmp_path), masks=str(tmp_path / "masks")).names == ("a.jpg",)


def test_images_and_masks_below_each_part(tmp_path):
    for part, count in (("train", 3), ("val", 2)):
        pair_folder(tmp_path / part, count)
    found = find_in_folder(str(tmp_path))
    assert found.task == "segmentation"
    assert found.names == tuple(f"{p}/images/{n}.jpg" for p, count in (("train", 3), ("val", 2)) for n in range(count))
    assert found.parts.tolist() == [TRAIN] * 3 + [VALIDATION] * 2
    for file, second in zip(found.files, found.seconds, strict=True):
        assert file.replace("/images/", "/masks/").replace("jpg", "png") == second


def test_masks_are_left_out_however_their_folder_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jpg", noise())
    write(tmp_path / "masks" / "a.png", noise(channels=1))
    assert find_in_folder(str(tmp_path), masks="masks").names == ("a.jpg",)
    assert find_in_folder(".", masks=str(tmp_path / "masks")).names == ("a.jpg",)


def test_targets_and_parts(tmp_path):
    for part in ("train", "val", "test"):
        write(tmp_path / "in" / part / "a.png", noise())
        write(tmp_path / "out" / part / "a.png", noise())
    found = find_in_folder(str(tmp_path / "in"), targets=str(tmp_path / "out"))
    assert found.task == "image"
    assert dict(zip(found.names, found.parts.tolist(), strict=True)) == {
        "train/a.png": TRAIN, "val/a.png": VALIDATION, "test/a.png": TEST,
    }  # fmt: skip


def build(tmp_path, kind):
    if kind == "beside":
        write(tmp_path / "loose.png", noise())
        class_folder(tmp_path, {"a": 1, "b": 1})
    if kind == "loose":
        write(tmp_path / "loose.png", noise())
    if kind == "no images":
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "notes.txt").write_text("x")
    if kind == "one class":
        class_folder(tmp_path, {"a": 3})
    if kind == "empty class":
        class_folder(tmp_path, {"a": 3, "b": 1})
        (tmp_path / "c").mkdir()
    if kind == "no mask":
        pair_folder(tmp_path, 3)
        (tmp_path / "masks" / "1.png").unlink()
    if kind == "no image":
        pair_folder(tmp_path, 3)
        (tmp_path / "images" / "2.jpg").unlink()
    if kind == "two of a name":
        pair_folder(tmp_path, 3)
        write(tmp_path / "images" / "2.png", noise())
    if kind == "new class":
        class_folder(tmp_path / "train", {"dogs": 1, "cats": 1})
        class_folder(tmp_path / "test", {"dog": 1})
    if kind == "val twice":
        for part in ("train", "val", "valid"):
            class_folder(tmp_path / part, {"a": 1, "b": 1})
    return str(tmp_path)


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("empty", "holds no images, expected a folder a class"),
        ("no images", "holds no images, expected a folder a class"),
        ("loose", "holds 1 image and no folders, so nothing says what they show; make a folder a class, or"),
        ("beside", "holds 1 image beside the folders of classes, such as 'loose.png'; move them"),
        ("one class", r"one class \('a'\), expected at least two"),
        ("empty class", "the folder 'c' holds no images; add some, or remove it"),
        (
            "no mask",
            "1 of 3 images have no mask, the first is '1.jpg'; expected a file of that name, of any suffix, in",
        ),
        ("no image", "1 of 3 masks have no image, the first is '2.png'"),
        ("two of a name", "'2.jpg' and '2.png' have one name"),
        ("new class", r"has a class 'dog' that .*train lacks; did you mean 'dogs'\?"),
        ("val twice", "has both val and valid; merge them"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, kind, line):
    folder = build(tmp_path, kind)
    with pytest.raises(UserError, match=line) as error:
        find_in_folder(folder)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_not_there_gets_the_nearest_name(tmp_path):
    class_folder(tmp_path / "photos", {"a": 1, "b": 1})
    with pytest.raises(UserError, match=r"photo is not there, expected a folder of images; did you mean 'photos'\?"):
        find_in_folder(str(tmp_path / "photo"))
    with pytest.raises(UserError, match=r"masks=.*mask is not there"):
        find_in_folder(str(tmp_path / "photos"), masks=str(tmp_path / "mask"))
    file = tmp_path / "labels.csv"
    file.write_text("x")
    with pytest.raises(UserError, match="is a file, expected a folder of images; a table of paths and labels is named"):
        find_in_folder(str(file))


def test_only_what_pillow_reads_alone_is_an_image(tmp_path):
    for name in ("a.jpeg", "b.PNG", "c.tiff", "d.webp", "e.gif", "f.pdf", "g.h5", "h.mpg", "i", "j.eps"):
        (tmp_path / name).write_bytes(b"")
    assert image_files(tmp_path) == ["a.jpeg", "b.PNG", "c.tiff", "d.webp", "e.gif"]


def test_class_order_takes_classes_as_they_are():
    assert class_order(["b", "a"], None, "here") == ("a", "b")
    assert class_order(["10", "9", "01"], None, "here") == ("01", "9", "10")
    assert class_order(["b"], ["c", "b"], "here") == ("c", "b")
    assert np.array_equal(class_order(["a", "1"], None, "here"), ("1", "a"))
