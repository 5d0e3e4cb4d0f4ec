import subprocess
import sys

import pytest

from lighten.data import build_data, check_data
from lighten.errors import UserError


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, "neither folder nor table is given; name where the images are"),
        ({"folder": "x", "task": "clasification"}, r"task='clasification'; did you mean 'classification'\?"),
        ({"folder": "x", "resize": "crp"}, r"resize='crp'; did you mean 'crop'\?"),
        ({"folder": "x", "cache": "ram"}, "cache='ram'; .*Choices: auto, disk, memory, none"),
        ({"folder": "x", "label_column": "y"}, "label_column has no effect without table"),
        ({"folder": "x", "label_columns": ["y"]}, "label_columns has no effect without table"),
        ({"folder": "x", "group_column": "y"}, "group_column has no effect without table"),
        ({"folder": "x", "image_column": "y"}, "image_column has no effect without table"),
        ({"folder": "x", "unit": "kg"}, "unit has no effect without table"),
        ({"table": "x.csv", "label_column": "y", "label_columns": ["z"]}, "both label_column and label_columns"),
        ({"table": "x.csv", "label_columns": ["y", "z", "y"]}, "label_columns has 'y' twice; name each column once"),
        ({"folder": "x", "masks": "y", "targets": "z"}, "both masks and targets"),
        ({"table": "x.csv", "folder": "x", "masks": "y"}, "masks needs folder, of the images, and no table"),
        ({"table": "x.csv", "targets": "y"}, "targets needs folder"),
        ({"folder": "x", "masks": "y", "task": "image"}, "task=image with masks, expected segmentation"),
        ({"folder": "x", "targets": "y", "task": "regression"}, "task=regression with targets, expected image"),
        ({"table": "x.csv", "task": "image"}, "task=image with table"),
        ({"folder": "x", "channels": 4}, r"channels=4, expected 1 \(grey\) or 3 \(RGB\)"),
        ({"folder": "x", "white": 0}, "white=0, expected the value of white"),
        ({"folder": "x", "size": 0}, "size=0, expected pixels of a side"),
        ({"folder": "x", "classes": ["a", "a"]}, r"classes=\['a', 'a'\] has a name twice"),
        ({"folder": "x", "augmet": True}, r"no option 'augmet'; did you mean 'augment'\?"),
        ({"folder": "x", "mixup": "much"}, "mixup='much': expected a number"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_anything_is_read(options, line):
    with pytest.raises(UserError, match=line) as error:
        build_data("images", **options)
    assert "\n" not in str(error.value)


def test_options_are_checked_without_torch():
    check_data("images", {"folder": "x"})
    code = (
        "import sys; from lighten.data.registry import check_data; check_data('images', {'folder': 'x'}); "
        "print([m for m in ('torch', 'lightning', 'PIL', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_lists_of_choices_are_those_of_their_owners():
    from lighten.data import decode, decoded, own_images
    from lighten.tasks import task_names

    assert own_images._RESIZES == decode.RESIZES
    assert own_images._CACHES == decoded.CACHES
    assert set(own_images.TASKS) <= set(task_names())
