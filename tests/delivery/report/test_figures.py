import pytest
from finished_run import make_scores

from lighten.delivery.report.figures import (
    amount,
    figure,
    headline,
    milliseconds,
    percent,
    roles,
    rows,
    sentence,
    times,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (percent(0.9135), "91.35 %"),
        (percent(0.5, 0), "50 %"),
        (amount(1_284_000, "B"), "1.28 MB"),
        (amount(121_377, "B"), "121 kB"),
        (amount(999, "B"), "999 B"),
        (amount(12), "12"),
        (amount(3_456_000_000), "3.46 G"),
        (milliseconds(0.3124), "0.312 ms"),
        (milliseconds(12.34), "12.3 ms"),
        (milliseconds(1234.5), "1234 ms"),
        (times(27.31), "27.3×"),
        (times(123.4), "123×"),
    ],
)
def test_numbers_are_shown_with_three_digits_and_their_unit(text, shown):
    assert text.replace("\N{NO-BREAK SPACE}", " ") == shown


@pytest.mark.parametrize("teacher", [True, False])
def test_every_figure_is_what_stands_at_its_place(teacher):
    scores = make_scores(teacher=teacher)
    found = [f for row in rows(scores) for f in (*row.cells, row.gain) if f]
    assert len(found) > 15
    for entry in found:
        value = scores
        for part in entry.key.split("."):
            value = value[part]
        assert entry.value == value
        assert entry.text == figure(scores, entry.key).text
    assert roles(scores) == (("teacher",) if teacher else ()) + ("student", "compressed")


def test_the_headline_takes_the_smaller_speedup_and_says_of_whom():
    scores = make_scores()
    scores["comparison"] |= {"speedup_batch_1": 8.14, "speedup_batch_32": 7.96, "size_ratio": 23.57}
    assert sentence(scores).startswith("23.6× smaller, 8.0× faster, 99.1")
    assert headline(scores)[1][0].key == "comparison.speedup_batch_32"
    assert sentence(scores).endswith("of the teacher’s accuracy")
    assert sentence(make_scores(teacher=False)).endswith("of the dense student’s accuracy")


def test_what_got_worse_is_called_so():
    scores = make_scores()
    scores["comparison"] |= {"speedup_batch_1": 0.5, "size_ratio": 0.8}
    assert sentence(scores).startswith("1.2× larger, 2.0× slower")
