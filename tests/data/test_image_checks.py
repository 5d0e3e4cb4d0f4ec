import dataclasses
import warnings

import numpy as np
import pytest

from lighten.data.decoded import Facts
from lighten.data.find_images import Found
from lighten.data.image_checks import check_classes, mask_classes, usable_rows, warn_of_copies
from lighten.errors import UserError


def found(count=100):
    names = tuple(f"{number}.png" for number in range(count))
    return Found(where="here", files=names, names=names, task="segmentation", why="", seconds=names)


def facts(errors=None, wrong=None):
    empty = np.zeros((100, 1, 2), np.int64)
    return Facts([""] * 100, empty, empty, np.zeros((100, 256), bool), errors or {}, wrong or {})


def test_broken_images_are_named_once_and_skipped_up_to_the_share():
    with pytest.warns(
        UserWarning, match=r"here: 2 of 100 images cannot be read: 7.png \(cut\), 9.png \(no image\); they"
    ):
        rows = usable_rows(found(), facts({9: "no image", 7: "cut"}), 0.02)
    assert rows.tolist() == [row for row in range(100) if row not in (7, 9)]
    with pytest.raises(UserError, match=r"2 of 100 images .* or raise skip_broken, the share that may be .*, 0.019"):
        usable_rows(found(), facts({9: "no image", 7: "cut"}), 0.019)
    with pytest.raises(UserError, match=r"9\.png \(x\) and 20 more; replace"):
        usable_rows(found(), facts(dict.fromkeys(range(30), "x")), 0.1)


def test_nothing_broken_says_nothing():
    assert len(usable_rows(found(), facts(), 0.0)) == 100


def test_what_is_wrong_is_never_skipped():
    with pytest.raises(UserError, match=r"^a mask of another size \(and 1 more\)$"):
        usable_rows(found(), facts(wrong={8: "later", 3: "a mask of another size"}), 0.9)


def test_classes_need_two_images():
    check_classes(np.array([0, 1, 0, 1]), ("a", "b"), "here")
    check_classes(np.array([0, 2, 0, 2]), ("a", "b", "c"), "here")
    with pytest.raises(UserError, match="class 'b' has one image, expected at least two: one to learn from and one to"):
        check_classes(np.array([0, 1, 0]), ("a", "b"), "here")
    with pytest.raises(UserError, match="has one image, as have 2 more classes, expected"):
        check_classes(np.array([0, 1, 2, 3, 0]), tuple("abcd"), "here")
    with pytest.raises(UserError, match="1 class with images that can be read, expected at least two"):
        check_classes(np.array([1, 1]), ("a", "b"), "here")


def values(*masks):
    array = np.zeros((len(masks), 256), bool)
    for row, mask in enumerate(masks):
        array[row, list(mask)] = True
    return array


def classes(*masks, classes=None, mask_values=None):
    return mask_classes(found(len(masks)), values(*masks), classes=classes, mask_values=mask_values)


def test_classes_of_masks_go_from_0_to_the_largest():
    names, labels = classes((0, 1), (3, 255))
    assert names == ("0", "1", "2", "3")
    assert labels[[0, 1, 2, 3, 255]].tolist() == [0, 1, 2, 3, 255]


def test_named_classes_and_values():
    names, labels = classes((0, 1), classes=("sky", "road", "car"))
    assert names == ("sky", "road", "car")
    names, labels = classes((0, 255), mask_values=[0, 255])
    assert (names, labels[0], labels[255]) == (("0", "255"), 0, 1)
    names, labels = classes((38, 75, 255), mask_values=[75, 38], classes=("a", "b"))
    assert (names, labels[[38, 75, 255]].tolist()) == (("a", "b"), [1, 0, 255])


@pytest.mark.parametrize(
    ("masks", "options", "line"),
    [
        (((0, 1), (7,)), {"classes": ("a", "b")}, r"1.png: the mask holds 7, expected 0 to 1 \(of classes\), or 255"),
        (((0, 1), (7,)), {"mask_values": [0, 1]}, r"1.png: the mask holds 7, expected \[0, 1\] \(of mask_values\)"),
        (((0, 255), (0,)), {}, r"masks hold 0 and 255 alone, .*; set mask_values: \[0, 255\] to have both"),
        (((0,), (0,)), {}, r"masks hold one class \(0\), expected at least two"),
        (((255,), (255,)), {}, r"masks hold no class, 255 alone, expected at least two"),
        (((0, 128), (0,)), {}, r"masks hold 0, 128, which would be 129 classes, .*; set mask_values: \[0, 128\], or"),
    ],
)
def test_values_that_are_no_class(masks, options, line):
    with pytest.raises(UserError, match=line) as error:
        classes(*masks, **options)
    assert "\n" not in str(error.value)


def test_copies_of_other_labels_and_in_other_parts_are_named():
    images = dataclasses.replace(found(4), labels=np.array([0, 1, 0, 0]), task="classification")
    rows, parts = np.arange(4), np.array([0, 0, 1, 0])
    with pytest.warns(UserWarning, match=r"1 images are copies of others with other labels, such as 1.png of 0.png"):
        warn_of_copies(images, rows, ["a", "a", "b", "c"], parts)
    with pytest.warns(UserWarning, match=r"1 images are .* in other parts, such as 2.png of 0.png; what is tested was"):
        warn_of_copies(images, rows, ["a", "b", "a", "c"], parts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_copies(images, rows, ["a", "b", "c", "a"], parts)
        warn_of_copies(dataclasses.replace(images, labels=None, task="segmentation"), rows, ["a", "a", "b", "c"], parts)
