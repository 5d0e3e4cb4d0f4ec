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


def stages_of(count, **known):
    said = []
    return Stages(lambda stage, done: said.append((stage, round(done, 3))), count, **known), said


def test_what_is_left_of_unknown_stages_is_the_mean_of_those_that_are_done(clock):
    stages, said = stages_of(3)
    stages("a")
    clock[0] = 10.0
    stages("b")  # 10 of 30 seconds
    clock[0] = 15.0
    stages("c")  # 15, and one more of 7.5
    assert said == [("a", 0.0), ("b", 0.333), ("c", 0.667)]


def test_a_stage_that_knows_how_far_it_is_tells_at_once_what_is_left(clock):
    stages, said = stages_of(2)
    stages("a")
    for _ in stages.each(["x", "y"]):
        clock[0] += 4.0
    assert said == [("a", 0.0), ("a", 0.25), ("a", 0.5)]  # 4 and 8 of 16 seconds


def test_stages_whose_length_is_known_count_as_long_as_they_are(clock):
    stages, said = stages_of(2, known=6.0)
    stages("short")
    clock[0] = 1.0
    stages("latency", seconds=6.0)  # 1, then 6 and 1 more
    clock[0] = 4.0
    stages.part(0.5)
    clock[0] = 7.0
    stages("short again")
    assert said == [("short", 0.0), ("latency", 0.125), ("latency", 0.5), ("short again", 0.875)]


def test_it_never_goes_back_and_more_stages_than_counted_are_no_more_than_all(clock):
    stages, said = stages_of(2)
    stages("a")
    clock[0] = 1.0
    stages("b")
    clock[0] = 9.0
    stages.part(0.1)  # it will take 80, not 1
    stages("c")
    stages("d")
    assert [done for _, done in said] == [0.0, 0.5, 0.5, 1.0, 1.0]


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
