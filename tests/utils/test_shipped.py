"""What comes with lighten is found in a checkout and in a wheel alike."""

from pathlib import Path

import pytest

from lighten.utils import shipped as place
from lighten.utils.shipped import shipped

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["recipes", "slurm", "start"])
def test_a_checkout_has_it_at_its_root(name):
    assert shipped(name) == ROOT / name
    assert shipped(name).is_dir()


def test_a_wheel_has_it_in_the_package(monkeypatch, tmp_path):
    package = tmp_path / "site-packages" / "lighten"
    (package / "shipped").mkdir(parents=True)
    monkeypatch.setattr(place, "_PACKAGE", package)
    assert shipped("recipes") == package / "shipped" / "recipes"
