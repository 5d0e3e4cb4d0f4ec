"""Losses that couple samples or divide by tokens: two ranks, or two shards, equal one rank on the same batch."""

import json
from pathlib import Path

import numpy as np
import pytest
from processes import run_fits

SCRIPT = Path(__file__).with_name("coupled_fit.py")


def fits(folder, *kinds):
    for ranks, kind in kinds:
        run_fits(SCRIPT, folder, ranks, kind)
    return {path.stem: json.loads(path.read_text()) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory):
    return fits(tmp_path_factory.mktemp("coupled"), (1, "one"), (2, "ddp"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return fits(tmp_path_factory.mktemp("sharded"), (2, "fsdp2"))


@pytest.fixture
def ended(request, wrapped):
    """Return what fits ended with, by case and kind; those of shards where a slow test asks for them."""
    slow = request.node.get_closest_marker("slow") is not None
    return wrapped | (request.getfixturevalue("sharded") if slow else {})


@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", ["classes", "tokens", "stages"])
def test_two_ranks_equal_one(ended, case, kind) -> None:
    one, two = ended[f"{case}-one"], ended[f"{case}-{kind}"]
    assert len(one["losses"]) == len(two["losses"]) == 8
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-6, atol=0)
    assert set(one["weights"]) == set(two["weights"])
    for name, weight in one["weights"].items():
        np.testing.assert_allclose(two["weights"][name], weight, rtol=0, atol=2e-6, err_msg=name)
    assert not two["teacher_changed"]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["classes", "tokens", "stages"])
def test_shards_are_the_students_and_the_teachers_where_that_is_asked(ended, case) -> None:
    sharded = ended[f"{case}-fsdp2"]
    students = {name for name in sharded["weights"] if name.startswith("student.")}
    assert students <= set(sharded["sharded"])
    assert bool(sharded["teacher_sharded"]) == bool(case != "classes")
    assert bool(sharded["teacher_whole"]) == bool(case == "classes")
    assert ended[f"{case}-ddp"]["sharded"] == []


@pytest.mark.slow
def test_a_student_without_weights_gets_its_own_and_the_teacher_keeps_its(ended) -> None:
    found = ended["meta"]
    assert found == {
        "teacher_changed": False,
        "finite": True,
        "shapes": {
            "student.0.weight": [8, 6], "student.0.bias": [8], "student.2.weight": [3, 8], "student.2.bias": [3],
        },
    }  # fmt: skip
