"""Files that come with the package are read only as they were released."""

import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lighten.data.embedded import EmbeddedFile, to_parquet
from lighten.errors import UserError

CONTENT = b"content"


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(EmbeddedFile, "path", tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_bytes(CONTENT)
    return EmbeddedFile("x.parquet", hashlib.sha256(CONTENT).hexdigest(), script="build_x.py")


def test_what_was_released_is_read(file):
    assert file.read() == CONTENT


def test_another_content_is_refused(file):
    file.path.write_bytes(CONTENT + b"!")
    with pytest.raises(UserError, match=r"x\.parquet is damaged: its SHA-256 is .*; reinstall lighten, or run scripts"):
        file.read()


def test_it_lies_in_the_package():
    assert EmbeddedFile("embedded.py", "", script="").path.is_file()


def test_a_table_becomes_the_same_file_each_time():
    table = pa.table({"split": ["train", "test"], "label": [1, 0]})
    content = to_parquet(table)
    assert content == to_parquet(table)
    assert pq.read_table(io.BytesIO(content)).to_pydict() == table.to_pydict()
