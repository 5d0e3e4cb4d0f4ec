import json

import numpy as np
import pytest
from finished_run import make_scores
from sklearn.metrics import accuracy_score, f1_score, recall_score

from lighten.delivery.measure.scores import compare, quality, read_scores, reference_of, seal_of, write_scores
from lighten.errors import UserError


def test_quality_is_what_scikit_learn_computes():
    draw = np.random.default_rng(0)
    labels, predicted = draw.integers(0, 6, 400), draw.integers(0, 7, 400)
    accuracy, macro_f1, recall = quality(predicted, labels, 8)  # class 6 is only predicted, 7 does not occur
    assert accuracy == pytest.approx(accuracy_score(labels, predicted))
    assert macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert recall[:6] == pytest.approx(recall_score(labels, predicted, average=None, labels=range(6)))
    assert recall[6:] == [None, None]


def test_comparison_divides_reference_by_compressed():
    scores = make_scores()
    teacher, compressed = scores["models"]["teacher"], scores["models"]["compressed"]
    ratios = compare(teacher, compressed)
    assert ratios["retention"] == pytest.approx(0.909 / 0.9175)
    assert ratios["size_ratio"] == pytest.approx(2_861_402 / 121_377)
    assert ratios["speedup_batch_1"] == pytest.approx(5.213 / 0.6214)
    assert set(ratios) <= set(scores["comparison"])


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
        (json.dumps({"schema": 2}), "schema 2, expected 1"),
        (json.dumps({"schema": 1, "models": {}}), "make it again with `lighten measure"),
    ],
    ids=["missing", "cut", "list", "newer", "half"],
)
def test_scores_that_cannot_be_used_say_so_in_one_line(tmp_path, content, says):
    if content is not None:
        (tmp_path / "scores.json").write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        read_scores(tmp_path)
    assert "\n" not in str(caught.value)
