"""The folder of a search: one process at a time, mended after a kill."""

import json
import os
import subprocess
import sys

import pytest

from lighten import UserError
from lighten.search.storage import Storage

ROW = {"number": 0, "state": "complete", "measured": {"drop": 0.01, "bytes": 5}}


def test_trials_are_told_once_however_often_a_kill_comes_between(tmp_path):
    for _ in range(3):
        with Storage(tmp_path, {"needs": "some"}) as storage:
            storage.ask(0, {"amount": 0.5})
            storage.report(0, 0.2, 1)
    for _ in range(2):
        with Storage(tmp_path, {"needs": "some"}) as storage:
            assert storage.reported(0) == {1: 0.2}
            storage.tell(ROW)
            storage.ask(0, {"amount": 0.5})
            (trial,) = storage._study.trials
            assert (trial.value, trial.user_attrs) == (0.01, {"amount": 0.5, "drop": 0.01, "bytes": 5})


def test_journal_that_was_cut_short_is_mended(tmp_path):
    with Storage(tmp_path, {}) as storage:
        storage.ask(0, {"amount": 0.5})
    with (tmp_path / "study.log").open("a") as file:
        file.write('{"op_code": 4, "tri')
    os.symlink("study.log", tmp_path / "study.log.lock")
    with Storage(tmp_path, {}) as storage:
        storage.tell(ROW)
    with Storage(tmp_path, {}) as storage:
        assert storage._study.trials[0].value == 0.01


@pytest.mark.filterwarnings("ignore:.*report.html is not written")  # there is nothing to report
def test_another_search_is_refused_and_its_folder_left_alone(tmp_path):
    with Storage(tmp_path, {"needs": "one", "seed": 0}) as storage:
        storage.write()
    before = (tmp_path / "search.json").read_bytes()
    with pytest.raises(UserError, match="holds another search, with needs one and not two"):
        Storage(tmp_path, {"needs": "two", "seed": 0}).__enter__()
    assert (tmp_path / "search.json").read_bytes() == before
    with Storage(tmp_path, {"needs": "one", "seed": 0}) as storage:
        assert storage.state == json.loads(before)


def test_lock_goes_with_its_process(tmp_path):
    script = (
        "import sys, os, signal; from pathlib import Path; from lighten.search.storage import Storage\n"
        "Storage(Path(sys.argv[1]), {}).__enter__(); print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(UserError, match=f"process {other.pid} searches in this folder now"):
            Storage(tmp_path, {}).__enter__()
    finally:
        other.kill()
        other.communicate()
    with Storage(tmp_path, {}):
        pass
