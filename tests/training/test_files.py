import hashlib

import pytest

from lighten.training.files import remove_stale, replace_file, write_whole


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

    with pytest.raises(OSError, match="No space"):
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
