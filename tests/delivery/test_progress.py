import re
from io import StringIO

import pytest
from rich.console import Console

from lighten.delivery import progress as module
from lighten.delivery.progress import Stages, progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def stages_of(count):
    said = []
    return Stages(lambda stage, done: said.append((stage, done)), count), said


def test_each_stage_is_an_equal_share_of_all():
    stages, said = stages_of(4)
    for name in "abcd":
        stages(name)
    assert said == [("a", 0.0), ("b", 0.25), ("c", 0.5), ("d", 0.75)]


def test_a_stage_that_knows_how_far_it_is_reports_it():
    stages, said = stages_of(2)
    stages("a")
    assert list(stages.each(["x", "y"])) == ["x", "y"]
    assert said == [("a", 0.0), ("a", 0.25), ("a", 0.5)]


def test_more_stages_than_counted_are_no_more_than_all():
    stages, said = stages_of(1)
    stages("a")
    stages("b")
    stages.part(0.5)
    assert [done for _, done in said] == [0.0, 1.0, 1.0]


def test_what_has_no_length_is_gone_through_in_silence():
    stages, said = stages_of(1)
    stages("a")
    assert list(stages.each(iter("xy"))) == ["x", "y"]
    assert said == [("a", 0.0)]


def test_where_there_is_no_terminal_each_stage_is_a_plain_line_with_the_time_that_is_left(clock):
    out = StringIO()
    with progress("export", Console(file=out, width=20)) as on_progress:
        on_progress("teacher.onnx", 0.0)
        clock[0] = 8.0
        on_progress("teacher.onnx", 0.1)
        on_progress("a name longer than the console [bold]", 0.25)
    assert out.getvalue() == (
        "export teacher.onnx …\nexport a name longer than the console [bold] (about 24 s left) …\n"
    )


def test_a_quiet_console_is_told_nothing():
    out = StringIO()
    with progress("export", Console(file=out, quiet=True)) as on_progress:
        on_progress("x", 0.0)
    assert out.getvalue() == ""


@pytest.mark.parametrize("ticks", [True, False])
def test_in_a_terminal_it_is_a_bar_with_the_remaining_time_which_goes_away(ticks):
    out, moments = StringIO(), iter(range(0, 1000, 6))
    console = Console(file=out, width=80, force_terminal=True, color_system=None, get_time=lambda: next(moments))
    with progress("measure", console, ticks=ticks) as on_progress:
        for done in (0.0, 0.25, 0.5):
            on_progress("accuracy [x]", done)
        before_the_end = out.getvalue()
    shown = out.getvalue()
    assert "measure accuracy [x]" in shown
    assert shown.endswith("\x1b[2K")  # the line is cleared
    if not ticks:  # each call is shown, so that the clock above says what is left
        assert " 50%" in before_the_end
        assert "━" in shown
        assert re.search(r" \d\d:\d\d left", shown)


def test_a_dumb_terminal_gets_lines():
    out = StringIO()
    with progress("x", Console(file=out, force_terminal=True, _environ={"TERM": "dumb"})) as on_progress:
        on_progress("y", 0.0)
    assert out.getvalue() == "x y …\n"
