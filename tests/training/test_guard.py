import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lighten.training import guard
from lighten.training.guard import GRACE, Guard, claim_cause, read_cause

PID, LAUNCHER = 4321, 1234


@pytest.fixture(autouse=True)
def nothing_elsewhere(monkeypatch, tmp_path):
    """The temporary folder that all share may hold a cause of somebody else's."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))


@pytest.fixture
def watched(monkeypatch, capfd, tmp_path):
    """A guard of a process that is not there, with what it does to it, and what it says."""

    class Watched:
        def __init__(self):
            self.guard = Guard(1, PID, 3.0, LAUNCHER)
            self.cause = tmp_path / "cause"
            self.killed = []
            self.there = True
            self.stopped = False
            self.guard.receive(f"watch {self.cause}\n".encode())
            monkeypatch.setattr(os, "getppid", lambda: PID if self.there else 1)
            monkeypatch.setattr(os, "kill", lambda *words: self.killed.append(words))
            self.launcher_runs = True
            monkeypatch.setattr(guard, "_state", self.state)

        def state(self, pid):
            if pid == LAUNCHER:
                return "S" if self.launcher_runs else ""
            return "T" if self.stopped else "S"

        def said(self):
            return capfd.readouterr().err

        def turns(self, seconds):
            """Return after how many seconds it ended the process, or ``None``."""
            return next((n / 2 for n in range(1, 2 * seconds + 1) if self.guard.poll(0.5)), None)

    return Watched()


def test_nothing_happens_to_one_that_runs(watched):
    assert watched.turns(1000) is None
    assert (watched.killed, watched.said()) == ([], "")


def test_one_that_is_stopped_is_ended(watched):
    watched.stopped = True
    assert watched.turns(100) == 3.0
    assert watched.killed == [(PID, signal.SIGKILL)]
    assert watched.said().startswith(f"error: rank 1 was stopped (SIGSTOP) for 3 seconds, process {PID} on ")
    assert read_cause(watched.cause).startswith("rank 1 was stopped")


def test_one_that_goes_on_in_time_is_left_alone(watched):
    for _ in range(5):
        watched.stopped = True
        assert watched.turns(2) is None
        watched.stopped = False
        assert watched.turns(1) is None


def test_anothers_failure_ends_it_after_a_while(watched):
    claim_cause(watched.cause, "rank 0 failed: no luck")
    assert watched.turns(100) == GRACE
    assert watched.killed == [(PID, signal.SIGKILL)]
    assert watched.said() == "error: rank 0 failed: no luck\n"


def test_one_that_failed_itself_may_go_on_until_it_has_told(watched):
    claim_cause(watched.cause, "rank 1 failed: no luck")
    watched.guard.receive(b"failed\n")
    assert watched.turns(100) is None
    watched.guard.receive(b"reported\n")
    assert watched.turns(100) == GRACE
    assert watched.said() == ""


def test_the_next_fit_is_watched_anew(watched):
    claim_cause(watched.cause, "rank 0 failed: no luck")
    watched.guard.receive(b"failed\nreported\n")
    watched.guard.receive(f"watch {watched.cause}2\n".encode())
    assert watched.turns(100) is None


@pytest.mark.parametrize("told", [False, True])
def test_one_that_is_gone_is_told_of_once(watched, told):
    watched.guard.receive(b"reported\n" if told else b"")
    watched.there = False
    assert watched.turns(1) == 0.5
    assert not watched.killed
    assert watched.said().startswith("" if told else f"error: rank 1 was killed (process {PID} on ")
    assert (read_cause(watched.cause) is None) == told


def test_what_became_of_the_launcher_comes_first(watched):
    """Its processes are killed with it, all at once."""
    watched.there = watched.launcher_runs = False
    assert watched.turns(3) is None
    claim_cause(watched.cause, "rank 0 was killed")
    assert watched.turns(1) == 0.5
    assert watched.said() == "error: rank 0 was killed\n"


def test_a_launcher_that_nobody_tells_of_is_not_waited_for_long(watched):
    watched.there = watched.launcher_runs = False
    assert watched.turns(100) == GRACE
    assert watched.said().startswith("error: rank 1 was killed")


def test_of_several_causes_the_first_counts(watched):
    claim_cause(watched.cause, "rank 0 failed: no luck")
    watched.there = False
    watched.turns(1)
    assert watched.said() == "error: rank 0 failed: no luck\n"
    assert [path.name for path in watched.cause.parent.iterdir()] == ["cause"]


def test_a_disk_that_takes_nothing_more_is_told_too(tmp_path, monkeypatch):
    cause, others = tmp_path / "full" / "cause", tmp_path / "elsewhere"
    others.mkdir()
    monkeypatch.setenv("TMPDIR", str(others))
    assert read_cause(cause) is None
    assert claim_cause(cause, "rank 0 failed: no room") == "rank 0 failed: no room"
    assert [path.name for path in others.iterdir()] == ["cause"]
    cause.parent.mkdir()  # room for a later one: it is not the first
    assert claim_cause(cause, "rank 1 was killed") == read_cause(cause) == "rank 0 failed: no room"
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    assert claim_cause(tmp_path / "gone" / "cause", "nobody hears it") == "nobody hears it"


def test_words_may_come_in_pieces():
    guarded = Guard(0, PID, 3.0)
    assert not guarded.receive(b"watch /a ")
    assert not guarded.receive(b"b\nfai")
    assert guarded.cause == Path("/a b")
    assert not guarded.failed
    assert not guarded.receive(b"led\ndeta")
    assert guarded.failed
    assert guarded.receive(b"ch\n")


def test_a_file_system_without_hard_links_will_do(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    assert claim_cause(tmp_path / "cause", "no luck") == "no luck"
    assert claim_cause(tmp_path / "cause", "no fortune") == "no luck"
    assert [path.name for path in tmp_path.iterdir()] == ["cause"]


def test_a_cause_that_cannot_be_written_is_told_all_the_same(tmp_path):
    assert claim_cause(tmp_path / "gone" / "cause", "no luck") == "no luck"


def test_a_stopped_process_is_seen_as_one():
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            assert guard._state(process.pid) in ("R", "S", "D")
            os.kill(process.pid, signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            assert guard._state(process.pid) == "T"
            process.kill()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            assert guard._state(process.pid) == ""
        finally:
            process.kill()
    assert guard._state(process.pid) == ""


def test_signals_for_the_rank_do_not_end_it_and_parting_does():
    command = [sys.executable, "-I", "-S", guard.__file__, "0", str(os.getpid()), "60", "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        status = Path(f"/proc/{process.pid}/status")
        wanted = sum(1 << number - 1 for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP))
        end = time.monotonic() + 60
        ignored = 0
        while ignored & wanted != wanted and process.poll() is None and time.monotonic() < end:
            ignored = int(status.read_text().partition("SigIgn:")[2].split()[0], 16)
        process.stdin.write(b"detach\n")
        process.stdin.flush()
        try:
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert ignored & wanted == wanted


def test_it_needs_the_standard_library_alone():
    check = f"import sys; sys.argv = ['x']; import runpy; runpy.run_path({guard.__file__!r}); print(len(sys.modules))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", check], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150
