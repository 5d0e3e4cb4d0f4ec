import pytest

from lighten.data import build_data, check_data, data_names
from lighten.errors import UserError


def test_the_defaults():
    data = build_data("scenes")
    assert "scenes" in data_names()
    assert (data.name, data.input_shape, data.train_samples, data.task.name) == (
        "scenes", (1, 64, 64), 4000, "segmentation",
    )  # fmt: skip
    assert data.options["answer"] == "mask"
    assert data.keyed is False
    assert "Fashion-MNIST: MIT" in data.licence
    assert build_data("scenes", answer="picture").noise == 0.2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"answer": "masks"}, "data scenes: answer='masks'; did you mean 'mask'?"),
        ({"noise": 0.1}, "noise=0.1 with answer='mask'; noise belongs to answer: picture"),
        ({"answer": "picture", "noise": 0}, "noise=0, expected a number above 0, at most 1"),
        ({"answer": "picture", "noise": float("nan")}, "noise=nan, expected a number above 0, at most 1"),
        ({"nms": 0.5}, "nms with answer='mask'; it belongs to answer: boxes"),
        ({"answer": "keypoints", "items": 3}, "items=3 with answer='keypoints', which are of one garment"),
        ({"items": 0}, "items=0, expected an integer of at least 1"),
        ({"answer": "count", "items": 1}, "items=1, expected an integer of at least 2"),
        ({"scenes": 0}, "scenes=0, expected an integer of at least 1"),
        ({"test": 0}, "test=0, expected an integer of at least 1"),
        ({"validation": 0}, "validation=0, expected an integer of at least 1"),
        ({"size": 2000}, "size=2000, expected at most 1024"),
        ({"size": 23, "items": 9}, "size=23 is too small for items=9, expected at least 24"),
        ({"views": 2, "augment": False}, "views=2 with augment=False: there is one view"),
        ({"workers": -1}, "workers=-1"),
    ],
)
def test_bad_options_are_told_in_one_line(options, says):
    with pytest.raises(UserError) as caught:
        build_data("scenes", **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_option_names_are_checked_before_anything_is_read():
    with pytest.raises(UserError, match="no option 'anser'; did you mean 'answer'"):
        check_data("scenes", {"anser": "mask"})
