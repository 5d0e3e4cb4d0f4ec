import json
import signal

import pytest

from lighten.errors import UserError
from lighten.training import failure
from lighten.training.failure import FILE, failure_kept
from lighten.training.signals import Preempted
from lighten.utils.files import DiskError


def fail(folder, error):
    with pytest.raises(type(error)), failure_kept(folder):
        raise error


def kept(folder):
    return json.loads((folder / FILE).read_text())["error"]


def test_what_a_user_can_mend_is_kept_as_it_was_told(tmp_path) -> None:
    fail(tmp_path, UserError("loss is NaN at step 3;\nlower the learning rate"))
    assert kept(tmp_path) == "loss is NaN at step 3; lower the learning rate"


def test_of_others_the_kind_and_the_line_of_code_are_kept_too(tmp_path) -> None:
    fail(tmp_path, ZeroDivisionError("division by zero"))
    assert kept(tmp_path).startswith("ZeroDivisionError: division by zero (test_failure.py line ")
    fail(tmp_path, KeyboardInterrupt())
    assert kept(tmp_path).startswith("KeyboardInterrupt (test_failure.py line ")


def test_the_next_start_takes_it_away(tmp_path) -> None:
    fail(tmp_path, UserError("x"))
    with failure_kept(tmp_path):
        assert not (tmp_path / FILE).exists()
    assert not (tmp_path / FILE).exists()


def test_being_asked_to_stop_is_no_failure(tmp_path) -> None:
    fail(tmp_path, Preempted(signal.SIGTERM, "at step 3"))
    assert not (tmp_path / FILE).exists()


def test_rank_zero_alone_writes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(failure, "is_rank_zero", lambda: False)
    fail(tmp_path, UserError("x"))
    assert not (tmp_path / FILE).exists()


def test_a_disk_that_takes_nothing_hides_no_error(tmp_path, monkeypatch) -> None:
    def refuse(path, write):
        raise DiskError(path, OSError(28, "No space left on device"), "be written")

    monkeypatch.setattr(failure, "replace_file", refuse)
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UserError, match=r"^the first error$"), failure_kept(folder):
            raise UserError("the first error")
