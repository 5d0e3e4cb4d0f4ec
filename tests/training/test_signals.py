import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lighten.training.signals import SIGNALS, Preempted, armed, is_armed, received


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_is_a_flag_that_stays(name, capfd):
    with armed():
        assert received() is None
        os.kill(os.getpid(), getattr(signal, name))
        os.kill(os.getpid(), signal.SIGTERM)
        assert received() is getattr(signal, name)
    assert capfd.readouterr().err == f"{name} received: stopping at the next step with a resumable checkpoint\n"


def test_handlers_are_what_they_were_afterwards():
    before = [signal.getsignal(number) for number in SIGNALS]
    with armed():
        assert is_armed()
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert not is_armed()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_of_an_earlier_run_is_forgotten():
    with armed():
        os.kill(os.getpid(), signal.SIGTERM)
    with armed():
        assert received() is None


HELD = """
import os, signal, threading, time
from lighten.training.signals import armed, hold, received
hold()
os.kill(os.getpid(), signal.SIGUSR1)
with armed():
    threading.Thread(target=time.sleep, args=(0.2,)).start()
    print(received().name)
os.kill(os.getpid(), signal.SIGTERM)
print("ended by itself")
"""


def test_what_was_held_back_is_taken_and_nothing_kills_the_end():
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "SIGUSR1\nended by itself\n")


def test_other_threads_leave_signals_alone():
    seen = []

    def work():
        with armed():
            seen.append(is_armed())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_the_exit_code_needs_no_catching():
    with pytest.raises(SystemExit) as stopped:
        raise Preempted(signal.SIGTERM, "after step 3")
    assert stopped.value.code == 143
    assert str(stopped.value) == "stopped by SIGTERM after step 3"


def test_it_is_there_before_anything_heavy():
    check = "import sys, lighten.training.signals; print(*{'torch', 'lightning', 'hydra'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


PARENT = """
import subprocess, sys, time
child = "import os, sys, time\\nfrom lighten.training.signals import die_with_parent\\n"
child += "die_with_parent(int(sys.argv[1]))\\nprint(os.getpid(), flush=True)\\ntime.sleep(600)"
subprocess.run([sys.executable, "-c", child, sys.argv[1] if sys.argv[1:] else str(__import__("os").getpid())])
"""


def test_who_is_bound_to_its_parent_ends_with_it():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
        assert parent.stdout.read() == ""  # the child held it open, too
    end = time.monotonic() + 60
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_who_has_lost_its_parent_already_ends_at_once():
    done = subprocess.run([sys.executable, "-c", PARENT, "1"], capture_output=True, text=True, check=True)
    assert done.stdout == ""
