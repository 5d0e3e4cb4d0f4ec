import pytest

from lighten.data.preprocessing import reader_of
from lighten.errors import UserError

SETTINGS = {
    "kind": "images", "size": [4, 6], "resize": "crop", "channels": 3, "white": 65535, "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
}  # fmt: skip


def test_a_reader_of_its_kind():
    assert reader_of(SETTINGS).frame.size == (4, 6)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"kind": "imagse"}, r"preprocessing is of the kind 'imagse'; did you mean 'images'\?"),
        ({"kind": None}, "preprocessing is of the kind None"),
        ({"size": None}, "preprocessing of the kind 'images' is not whole"),
        ({"size": ["a", 3]}, "preprocessing of the kind 'images' is not whole"),
        ({"mean": [0.1]}, "preprocessing of images has parts that do not fit each other"),
        ({"resize": "blow up"}, "preprocessing of images has parts that do not fit each other"),
        ({"channels": 2, "mean": [0, 0], "std": [1, 1]}, "parts that do not fit each other"),
        ({"std": [0.4, 0.5, 0.0]}, "parts that do not fit each other"),
    ],
)
def test_settings_that_are_wrong_are_refused_in_one_line(changes, line):
    with pytest.raises(UserError, match=line):
        reader_of(SETTINGS | changes)


def test_a_setting_that_is_missing_is_named():
    with pytest.raises(UserError, match=r"is not whole \('white'\); take it from config\.json"):
        reader_of({key: value for key, value in SETTINGS.items() if key != "white"})
