import io
import time

import pytest

from lighten.utils import long_work as module
from lighten.utils.long_work import long_work


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, stream, patience, seconds):
    monkeypatch.setattr(module, "PATIENCE", patience)
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with long_work("plan") as report:
        report("traces", 0.25)
        with long_work("other") as inner:
            inner("tries groups", 0.5)
            time.sleep(seconds)
    return stream.getvalue()


def test_work_that_takes_long_is_shown_with_what_it_is_at(monkeypatch):
    text = shown(monkeypatch, Terminal(), 0.01, 0.5)
    assert "plan: tries groups" in text
    assert "50%" in text
    assert "other" not in text


@pytest.mark.parametrize(("stream", "patience"), [(Terminal, 60), (io.StringIO, 0.01)], ids=["quick", "no terminal"])
def test_nothing_is_shown_of_quick_work_or_into_a_file(monkeypatch, stream, patience):
    assert shown(monkeypatch, stream(), patience, 0.1) == ""


def test_an_error_passes_and_ends_the_bar(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    monkeypatch.setattr("sys.stderr", stream := Terminal())
    reports = []

    def work():
        with long_work("plan") as report:
            reports.append(report)
            time.sleep(0.3)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        work()
    length = len(stream.getvalue())
    reports[0]("late", 1.0)
    time.sleep(0.2)
    assert len(stream.getvalue()) == length
