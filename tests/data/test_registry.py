import subprocess
import sys

import pytest

from lighten.data import build_data, check_data, data_names
from lighten.data.registry import _REGISTRY
from lighten.errors import UserError


def test_names():
    assert {"fashion_mnist", "cifar10", "diamonds"} <= set(data_names())


def test_typo_gets_the_nearest_name():
    with pytest.raises(UserError, match=r"data 'fashion_mnits' is unknown; did you mean 'fashion_mnist'\?"):
        build_data("fashion_mnits")


def test_options_are_checked_without_reading():
    check_data("cifar10", {"validation": 10})
    with pytest.raises(UserError, match="data cifar10: no option 'folder'"):
        check_data("cifar10", {"folder": "x"})


def test_checking_imports_neither_torch_nor_lightning():
    code = (
        "import sys; from lighten.data.registry import check_data; check_data('fashion_mnist', {'source': 'idx'}); "
        "print([m for m in ('torch', 'lightning', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_usual_is_set_and_no_property_is_asked(monkeypatch):
    class Data:
        views = None

        @property
        def task(self):
            raise AssertionError("it would read")

    monkeypatch.setitem(_REGISTRY._builders, "lazy", lambda *, batch_size, seed, workers: Data())
    data = build_data("lazy")
    assert (data.views, data.keyed, data.name, data.options) == (None, False, "lazy", {})
