import json

import pytest
from finished_run import make_history, make_plan

from lighten.delivery.folders.run import as_plan, open_run, read_history, read_json, recipe_name, write_json
from lighten.errors import UserError


def write_lines(path, rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def test_history_is_read_line_by_line(tmp_path):
    rows = make_history()
    history = read_history(write_lines(tmp_path / "history.jsonl", rows))
    assert (history.rows, history.notes) == (rows, [])
    accuracy = [(row["progress"], row["student/accuracy"]) for row in rows if "student/accuracy" in row]
    assert history.series("student/accuracy") == accuracy
    assert history.series("nothing") == []


def test_a_last_line_cut_short_is_left_out_with_a_note(tmp_path):
    history = read_history(write_lines(tmp_path / "h", [{"step": 1}, {"step": 2}, '{"step": 3, "lo']))
    assert [row["step"] for row in history.rows] == [1, 2]
    assert history.notes == ["The last line of history.jsonl is cut short and was left out."]


def test_lines_that_are_no_rows_are_counted(tmp_path):
    history = read_history(write_lines(tmp_path / "h", [{"step": 1}, "\x00\n", "[]\n", {"step": "x"}, {"step": 4}]))
    assert [row["step"] for row in history.rows] == [1, 4]
    assert history.notes == ["3 unreadable line(s) of history.jsonl were left out, the first is line 2."]


def test_after_a_resume_the_later_lines_count(tmp_path):
    rows = [{"step": s, "part": 1} for s in (10, 20, 30)] + [{"step": s, "part": 2} for s in (20, 30, 40)]
    history = read_history(write_lines(tmp_path / "h", rows))
    assert [(row["step"], row["part"]) for row in history.rows] == [(10, 1), (20, 2), (30, 2), (40, 2)]


def test_values_that_are_no_finite_numbers_are_no_points(tmp_path):
    rows = [{"step": i, "progress": i / 4, "x": x} for i, x in enumerate([1, None, True, "2", 3.5])]
    assert read_history(write_lines(tmp_path / "h", rows)).series("x") == [(0.0, 1.0), (1.0, 3.5)]


def test_progress_is_the_share_of_the_last_step_where_the_fit_had_no_end(tmp_path):
    rows = [{"step": 5, "progress": None, "x": 1}, {"step": 10, "progress": None, "x": 2}]
    assert read_history(write_lines(tmp_path / "h", rows)).series("x") == [(0.5, 1.0), (1.0, 2.0)]


def test_no_history_is_an_empty_one(tmp_path):
    history = read_history(tmp_path / "none")
    assert history.rows == []
    assert history.notes == ["There is no history.jsonl in this run."]


def test_a_run_is_a_folder_with_something_in_it(tmp_path, run):
    assert open_run(str(run)) == run
    assert recipe_name(run) == "distil_cnn"
    with pytest.raises(UserError, match="none: no such folder; expected a run folder"):
        open_run(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: not a run folder"):
        open_run(tmp_path / "empty")


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = write_json(tmp_path / "x.json", {"a": "ü"})
    assert read_json(path, made_by="x") == {"a": "ü"}
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"a": float("nan")})
    assert read_json(path, made_by="x") == {"a": "ü"}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_plan_is_read_from_its_object():
    plan = make_plan()
    assert as_plan(json.loads(plan.to_json())) == plan
    assert as_plan(None) is None
