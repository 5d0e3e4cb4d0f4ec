import json

import pytest
from finished_run import make_scores, schema_1

from lighten.delivery.measure.scores import compare, describe_task, read_scores, reference_of, seal_of, write_scores
from lighten.errors import UserError
from lighten.tasks import build_task, task_of


def test_comparison_divides_reference_by_compressed():
    scores = make_scores()
    teacher, compressed = scores["models"]["teacher"], scores["models"]["compressed"]
    ratios = compare(task_of("classification"), teacher, compressed)
    assert ratios["retention"] == pytest.approx(0.909 / 0.9175)
    assert ratios["size_ratio"] == pytest.approx(2_861_402 / 121_377)
    assert ratios["speedup_batch_1"] == pytest.approx(5.213 / 0.6214)
    assert set(ratios) <= set(scores["comparison"])


def test_scores_of_the_first_schema_are_read_as_those_of_classes(tmp_path):
    write_scores(tmp_path, schema_1(make_scores()))
    found, expected = read_scores(tmp_path), make_scores()
    del expected["comparison"]["likeness"]["kl"]
    assert found == expected
    half = {name: value for name, value in schema_1(make_scores()).items() if name != "classes"}
    write_scores(tmp_path, half)
    assert read_scores(tmp_path)["parts"] == {}


def test_scores_say_how_their_figures_are_called_and_which_way_is_better():
    told = describe_task(build_task("regression", mean=[1.0], std=[2.0], unit="USD"))
    assert (told["metric"], told["lower_is_better"], told["unit"]) == ("r2", False, "USD")
    assert told["metrics"]["mae"] == {"label": "Mean absolute error", "format": "amount", "lower_is_better": True}
    assert task_of(json.loads(json.dumps(told))["settings"]) == build_task(
        "regression", mean=[1.0], std=[2.0], unit="USD"
    )


def test_without_a_teacher_the_dense_student_is_the_reference():
    assert reference_of(make_scores())[0] == "teacher"
    role, figures = reference_of(make_scores(teacher=False))
    assert (role, figures["accuracy"]) == ("student", 0.9105)


def test_written_scores_are_read_back_under_a_seal_of_their_own(tmp_path):
    write_scores(tmp_path, make_scores())
    assert read_scores(tmp_path) == make_scores()
    written = json.loads((tmp_path / "scores.json").read_text())
    assert list(written)[-1] == "seal"
    assert written["seal"] == seal_of(written) == seal_of(make_scores())
    written["models"]["compressed"]["latency_ms"]["batch_1"]["median"] *= 0.999
    assert written["seal"] != seal_of(written)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file; make it with `lighten measure"),
        ("{", "cannot be read as JSON"),
        ("[]", "holds list, expected an object"),
        (json.dumps({"schema": 3}), "schema 3, expected 2"),
        (json.dumps({"schema": 2, "recipe": "", "models": {}, "comparison": {}}), "schema 2, expected 2"),
        (json.dumps({"schema": 1, "models": {}}), "make it again with `lighten measure"),
    ],
    ids=["missing", "cut", "list", "newer", "no task", "half"],
)
def test_scores_that_cannot_be_used_say_so_in_one_line(tmp_path, content, says):
    if content is not None:
        (tmp_path / "scores.json").write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        read_scores(tmp_path)
    assert "\n" not in str(caught.value)
