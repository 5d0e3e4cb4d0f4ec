import numpy as np
from finished_run import write_confusion
from sklearn.metrics import confusion_matrix

from lighten.delivery.measure.confusion import confusion_rows


def test_rows_are_what_scikit_learn_counts(tmp_path) -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 4, 200)
    predicted = {"teacher": np.where(draw.random(200) < 0.8, labels, 3), "compressed": draw.integers(0, 3, 200)}
    write_confusion(tmp_path, list("abcd"), predicted, labels)
    columns, rows = confusion_rows(tmp_path)
    assert columns == ["label", "answer", "teacher", "compressed"]
    expected = {model: confusion_matrix(labels, answers, labels=range(4)) for model, answers in predicted.items()}
    found = {model: np.zeros((4, 4), int) for model in predicted}
    for label, answer, *counts in rows:
        for model, count in zip(predicted, counts, strict=True):
            found[model]["abcd".index(label), "abcd".index(answer)] = count
    for model in predicted:
        np.testing.assert_array_equal(found[model], expected[model])
    assert all(any(counts) for _, _, *counts in rows), "a row for what never occurs"
