import json

import pytest
from search_run import make_search, make_trials, setting, write_search

from lighten.delivery.measure.scores import describe_task
from lighten.delivery.report.search_figures import (
    Search,
    agreement_of,
    needs_in_words,
    read_search,
    seconds_text,
    setting_in_words,
    spent,
    where_timed,
)
from lighten.errors import UserError
from lighten.tasks import task_of


def plain(text):
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_the_leader_is_the_chosen_one_and_before_the_choice_the_fastest_of_the_frontier_within_the_need():
    assert Search(make_search("met")).leader["number"] == 4
    assert Search(make_search("met", chosen=2)).leader["number"] == 2
    assert Search(make_search("running")).leader["number"] == 2
    assert Search(make_search("running", needs={"max_drop": 0.003})).leader["number"] == 0
    assert Search(make_search("running", needs={"max_drop": 0.001})).leader is None
    assert Search(make_search("running", trials=[], frontier=[])).leader is None


def test_needs_are_told_in_words():
    needs = {"max_drop": 0.01, "latency_ms": 2.0, "bytes": 546_560, "batch": 4, "threads": 2, "runtime": "onnx",
             "relative": {"bytes": 0.5, "macs": 0.25}}  # fmt: skip
    search = Search(make_search(needs=needs))
    assert plain(needs_in_words(search)) == (
        "a drop of 1.00 points at most, 2.00 ms at most, 547 kB at most (50 % of the original’s) and 25 % of the "
        "original’s MACs at most"
    )
    assert where_timed(search) == "onnxruntime, batch 4, 2 threads"


def test_a_drop_is_in_points_of_a_share_and_else_a_share_of_the_quality():
    assert plain(Search(make_search()).drop_text(-0.00449)) == "\N{MINUS SIGN}0.45 points"
    assert plain(Search(make_search()).drop_text(-1e-9)) == "0.00 points"
    pictures = describe_task(task_of("image"))
    search = Search(make_search(task=pictures, metric=pictures["metric"], lower_is_better=False))
    assert pictures["metrics"][pictures["metric"]]["format"] == "decibel"
    assert plain(search.drop_text(0.013)) == "1.30 %"


def test_settings_are_told_in_words():
    told = setting_in_words(setting(0.5, exclude=["a", "b", "c", "d"]))
    assert plain(told) == (
        "50 % of the MACs pruned (fpgm, sensitivity); int8, trained through; a, b, c and 1 more in float; "
        "6 epochs, taught by the original"
    )
    assert setting_in_words(setting(0.0, "static", 0.0)) == "not pruned; int8 after training"


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.12, "4.1 s"), (31.0, "31 s"), (75.2, "1 min 15 s"), (7260, "2 h 1 min")]
)
def test_times_are_read_at_once(seconds, text):
    assert plain(seconds_text(seconds)) == text


def test_predictions_are_compared_where_both_are_known():
    search = Search(make_search())
    told = plain(agreement_of(search, "latency_ms"))
    by_hand = sorted([0.098 / 0.094 - 1, 0.079 / 0.075 - 1, 0.068 / 0.066 - 1])[1]  # of trials 2, 4, 5: on the frontier
    assert told == f"4 trials: Spearman 1.00; on the frontier {100 * by_hand:.1f} % off, by the median"
    assert agreement_of(Search(make_search(trials=make_trials()[:3])), "drop") is None  # of one there is no order


def test_the_time_is_split_whole():
    rows = list(spent(Search(make_search())))
    assert rows[0][0] == "fine-tuning"
    assert sum(share for _, _, share in rows) == pytest.approx(1.0)


def test_what_is_no_search_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file; make it with `lighten compress`"):
        read_search(tmp_path)
    folder = write_search(tmp_path / "a")
    for broken in ({"schema": 2}, {"state": "done"}, {"trials": [{"number": 1}, {"number": 1}]}, {"trials": [3]}):
        (folder / "search.json").write_text(json.dumps(make_search() | broken))
        with pytest.raises(UserError, match=r"search\.json: .*make it again"):
            read_search(folder)
