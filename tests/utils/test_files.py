import errno
import hashlib
import io
import logging
import os
import resource
import threading
import time
from contextlib import contextmanager, nullcontext

import pytest
import torch
from safetensors.torch import save_file

from lighten.errors import UserError
from lighten.utils.files import (
    DiskError,
    append_line,
    disk_errors_as_user_errors,
    remove_stale,
    replace_file,
    suppress_thread_disk_errors,
    write_whole,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_replace_file_returns_hash_and_size(tmp_path) -> None:
    digest, size = replace_file(tmp_path / "a", lambda file: file.write(b"words"))
    assert (tmp_path / "a").read_bytes() == b"words"
    assert (digest, size) == (hashlib.sha256(b"words").hexdigest(), 5)
    assert names(tmp_path) == ["a"]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path) -> None:
    (tmp_path / "a").write_text("old")

    def fail(file) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskError, match=r"/a cannot be written \(No space left on device\); free disk space and"):
        replace_file(tmp_path / "a", fail)
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_write_whole_gives_a_folder_or_nothing(tmp_path) -> None:
    def save(path) -> None:
        path.mkdir()
        (path / "inside").write_text("x")

    def fail(path) -> None:
        save(path)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_whole(tmp_path / "deep" / "model", fail)
    assert names(tmp_path / "deep") == []
    write_whole(tmp_path / "deep" / "model", save)
    assert names(tmp_path / "deep" / "model") == ["inside"]


def test_stale_files_go_and_others_stay(tmp_path) -> None:
    for name in (".writing-a.ckpt-17.tmp", "a.ckpt", "mine.tmp", ".writing-mine"):
        (tmp_path / name).touch()
    remove_stale(tmp_path)
    assert names(tmp_path) == [".writing-mine", "a.ckpt", "mine.tmp"]


def test_young_ones_stay_where_others_write(tmp_path) -> None:
    for name, age in (("old", 7200), ("young", 60)):
        path = tmp_path / "deep" / f".writing-{name}-1.tmp"
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    remove_stale(tmp_path, age=3600)
    assert len(names(tmp_path / "deep")) == 2
    remove_stale(tmp_path, age=3600, deep=True)
    assert names(tmp_path / "deep") == [".writing-young-1.tmp"]
    remove_stale(tmp_path, deep=True)
    assert names(tmp_path / "deep") == []


@contextmanager
def files_end_at(size):
    """Let the system refuse files beyond ``size`` bytes, as a full disk refuses them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WEIGHTS = {"a": torch.zeros(100, 100)}
WRITERS = {
    "bytes": lambda path: replace_file(path, lambda file: file.write(bytes(40_000))),
    "torch": lambda path: replace_file(path, lambda file: torch.save(WEIGHTS, file)),
    "safetensors": lambda path: write_whole(path, lambda part: save_file(WEIGHTS, part)),
    "inner": lambda path: write_whole(path, lambda part: replace_file(part, lambda file: file.write(bytes(40_000)))),
    "folder": lambda path: write_whole(path.with_name("b"), in_a_folder),
}


def in_a_folder(folder) -> None:
    folder.mkdir()
    WRITERS["bytes"](folder / "a")


@pytest.mark.parametrize("writer", WRITERS)
def test_what_a_disk_refuses_is_one_line_whoever_writes(tmp_path, writer) -> None:
    (tmp_path / "a").write_text("old")
    with files_end_at(5000), pytest.raises(DiskError) as caught:
        WRITERS[writer](tmp_path / "a")
    error = caught.value
    assert str(error).startswith(f"{tmp_path}/{'b/' if writer == 'folder' else ''}a cannot")
    assert "cannot be written (File too large); raise the limit on the size of files (ulimit -f) and" in str(error)
    assert "\n" not in str(error)
    assert (error.errno, error.strerror) == (errno.EFBIG, "File too large")
    assert isinstance(error, UserError)
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_line_that_cannot_be_appended_says_so(tmp_path) -> None:
    append_line(tmp_path / "log", "first")
    with files_end_at(8), pytest.raises(DiskError, match=r"/log cannot be written \(File too large\)"):
        append_line(tmp_path / "log", "second")
    assert (tmp_path / "log").read_text().splitlines()[0] == "first"


def test_what_no_disk_has_said_passes_unchanged(tmp_path) -> None:
    def fail(path) -> None:
        path.touch()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        write_whole(tmp_path / "a", fail)
    told = UserError("told in other words")
    told.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    for error in (ValueError("(os error 2)"), FileNotFoundError(errno.ENOENT, "no such file"), told):
        with pytest.raises(type(error)) as caught, disk_errors_as_user_errors(tmp_path):
            raise error
        assert caught.value is error


def close_after_a_refusal(path) -> None:
    try:
        replace_file(path, full)
    finally:
        raise RuntimeError("a logger that cannot be closed")


def speak_rust(path) -> None:
    raise RuntimeError("Error while serializing: I/O error (os error 122)")


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (close_after_a_refusal, r"/a cannot be written \(No space left on device\); free disk space"),
        (speak_rust, r"/ cannot be read or written \(Disk quota exceeded\); remove files"),
    ],
)
def test_what_is_raised_on_top_does_not_hide_the_disk(tmp_path, write, says) -> None:
    with (
        pytest.raises(DiskError, match=says.replace("/ ", f"{tmp_path} ")) as caught,
        disk_errors_as_user_errors(tmp_path),
    ):
        write(tmp_path / "a")
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_log_files_and_threads_leave_it_to_the_fit_to_tell(tmp_path, capsys) -> None:
    def refused() -> None:
        full(None)

    def broken() -> None:
        raise KeyError("mine")

    handler = logging.StreamHandler(Full())
    record = logging.makeLogRecord({"msg": "words"})
    before = threading.excepthook
    threading.excepthook = lambda thread: print(f"heard of {thread.exc_value!r}")
    try:
        for inside in (True, False):
            with suppress_thread_disk_errors() if inside else nullcontext():
                handler.handle(record)
                for work in (refused, broken):
                    thread = threading.Thread(target=work)
                    thread.start()
                    thread.join()
            out, err = capsys.readouterr()
            assert ("No space left on device" in out) == (not inside)
            assert "heard of KeyError('mine')" in out
            assert ("Traceback" in err) == (not inside)
    finally:
        threading.excepthook = before


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full(file) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
