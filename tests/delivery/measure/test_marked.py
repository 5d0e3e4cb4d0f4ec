import numpy as np
import pytest
from PIL import Image

from lighten.delivery.measure.marked import described, draw_marks, mark_colours

NAMES = ["hat", "shoe", "bag"]


def marked(marks, size=(200, 160)):
    return draw_marks(Image.new("L", size, 90), marks, NAMES)


def test_each_class_has_a_colour_of_its_own_that_can_be_seen_on_black():
    colours = mark_colours(NAMES)
    assert list(colours) == NAMES
    assert len(set(colours.values())) == 3
    assert all(max(colour) > 150 for colour in colours.values())
    assert mark_colours(NAMES[:1])["hat"] == colours["hat"]


def test_a_box_is_an_outline_in_the_colour_of_its_class():
    pixels = marked([{"box": [50, 60, 150, 120], "label": "shoe", "odds": 0.876}])
    assert (pixels.shape, pixels.dtype) == ((160, 200, 3), np.uint8)
    there = (pixels == mark_colours(NAMES)["shoe"]).all(-1)
    assert there[60, 50:150].all()
    assert there[119, 50:150].all()
    assert there[60:120, 50].all()
    assert there[60:120, 149].all()
    assert (pixels[65:115, 55:145] == 90).all()
    assert (pixels[125:] == 90).all()
    assert there[45:60].sum() > 100  # the plate that its name is on


@pytest.mark.parametrize("box", [[0, 0, 200, 160], [190, 2, 200, 20], [-5, -5, 3, 3]])
def test_names_stay_within_the_picture(box):
    pixels = marked([{"box": box, "label": "shoe", "odds": None}])
    assert pixels.shape == (160, 200, 3)
    assert (pixels == mark_colours(NAMES)["shoe"]).all(-1).sum() > 60


def test_points_and_labels_without_a_colour():
    pixels = marked([{"point": [100, 80], "label": "elbow", "odds": None}])
    assert (pixels[74:87, 94:107] == 255).all(-1).any()
    assert pixels[80, 100].tolist() == [90] * 3
    assert (described({"label": "x", "odds": None}), described({"label": "x", "odds": 0.876})) == ("x", "x 88 %")


def test_the_likeliest_lies_on_top():
    marks = [{"box": [50, 60, 150, 120], "label": name, "odds": odds} for name, odds in (("hat", 0.9), ("bag", 0.4))]
    assert (marked(marks)[90, 50] == mark_colours(NAMES)["hat"]).all()
