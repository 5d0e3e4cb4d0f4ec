import os

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lighten.data.tables import column_names, delimiter_of, is_file_name, read_file, read_hub
from lighten.errors import UserError


def test_csv_keeps_text_as_text_and_new_lines_inside_quotes(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('text,number,label\n"two\nlines, ""quoted""",007,1\n,1e3,0\n', encoding="utf-8")
    table = read_file(str(file), ["text", "number"])
    assert table.to_pydict() == {"text": ['two\nlines, "quoted"', ""], "number": ["007", "1e3"], "label": [1, 0]}


def test_a_long_csv_is_not_cut_inside_quotes(tmp_path):
    file, count = tmp_path / "a.csv", 60_000
    file.write_text("text,label\n" + '"one line,\nanother, and\none more",1\n' * count)
    assert file.stat().st_size > 2**20  # what is parsed at once
    assert read_file(str(file), ["text"])["text"].to_pylist() == ["one line,\nanother, and\none more"] * count


def test_other_formats(tmp_path):
    rows = {"text": ["groß", "b, c"], "label": ["x", "y"]}
    (tmp_path / "a.TSV").write_text("text\tlabel\ngroß\tx\nb, c\ty\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"text": "groß", "label": "x"}\n{"text": "b, c", "label": "y"}\n', "utf-8")
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    for name in ("a.TSV", "a.jsonl", "a.parquet"):
        assert read_file(str(tmp_path / name), ["text"]).to_pydict() == rows


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet", "a.json", "a.jsonl"])
def test_damaged_and_missing_files_are_told_in_one_line(tmp_path, name):
    file = tmp_path / name
    with pytest.raises(UserError, match=f"{name} is missing; give the path of a file that is there"):
        read_file(str(file), [])
    file.write_bytes(b'{"a": \xff\xfe\n"b' if "json" in name else b'a,b\ta\n"1\n\xff,2,3\t4\t"5\n')
    with pytest.raises(
        UserError, match=rf"{name} cannot be read as {file.suffix[1:]} \(.+\); fix or replace"
    ) as caught:
        read_file(str(file), ["a"])
    assert "\n" not in str(caught.value)


def test_another_suffix(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("x")
    assert is_file_name(str(file))
    assert is_file_name("missing.CSV")
    assert not is_file_name("nyu-mll/glue")
    assert not is_file_name(str(tmp_path))
    with pytest.raises(UserError, match=r"a\.txt ends in '\.txt', expected one of \.csv, \.tsv"):
        read_file(str(file), [])


@pytest.mark.parametrize("config", [None, "part"])
def test_a_local_data_set_has_its_splits_and_class_names(tmp_path, config):
    folder = tmp_path / config if config else tmp_path
    folder.mkdir(exist_ok=True)
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    for split, labels in (("train", [0, 1]), ("validation", [1])):
        rows = {"text": [f"{split} {i}" for i in labels], "label": labels}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    splits = read_hub(str(tmp_path), config)
    assert splits.tables["train"].to_pydict() == {"text": ["train 0", "train 1"], "label": [0, 1]}
    assert splits.tables["validation"].to_pydict() == {"text": ["validation 1"], "label": [1]}
    assert splits.class_names == {"label": ("no", "yes")}


def test_no_network_and_no_cache_is_told_in_one_line(monkeypatch):
    def refuse(*_):
        raise ConnectionError("Couldn't reach the hub\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError, match=r"data set 'someone/thing', part cannot be had from the hub .*reach") as caught:
        read_hub("someone/thing", "part")
    assert "\n" not in str(caught.value)


def test_all_columns_as_text(tmp_path):
    (tmp_path / "a.csv").write_text('a,b\n007,"1,5"\n,NA\n')
    assert read_file(str(tmp_path / "a.csv"), None).to_pydict() == {"a": ["007", ""], "b": ["1,5", "NA"]}
    (tmp_path / "a.tsv").write_text("a;x\tb\n1\t2020-01-01\n")
    assert read_file(str(tmp_path / "a.tsv"), None).to_pydict() == {"a;x": ["1"], "b": ["2020-01-01"]}


def test_semicolons_separate_where_the_head_has_no_comma(tmp_path):
    (tmp_path / "a.csv").write_text('a;"b c"\n1,5;x\n')
    assert delimiter_of(str(tmp_path / "a.csv")) == ";"
    assert read_file(str(tmp_path / "a.csv"), None).to_pydict() == {"a": ["1,5"], "b c": ["x"]}
    (tmp_path / "a.csv").write_text("a,b;c\n1,2\n")
    assert read_file(str(tmp_path / "a.csv"), None).to_pydict() == {"a": ["1"], "b;c": ["2"]}


def test_names_of_columns(tmp_path):
    (tmp_path / "a.csv").write_text("x;y\n1;2\n")
    (tmp_path / "a.tsv").write_text("x\ty\n1\t2\n")
    (tmp_path / "a.jsonl").write_text('{"x": 1, "y": 2}\n')
    pq.write_table(pa.table({"x": [1], "y": [2]}), tmp_path / "a.parquet")
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.parquet"):
        assert column_names(str(tmp_path / name)) == ["x", "y"]
    for suffix in ("csv", "tsv", "jsonl", "parquet"):
        (tmp_path / f"bad.{suffix}").write_bytes(b"")
        assert column_names(str(tmp_path / f"bad.{suffix}")) == []
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    assert column_names(str(tmp_path / "deep.jsonl")) == []
    os.mkfifo(tmp_path / "pipe.csv")  # opening one waits for a writer
    for name in ("missing.csv", "pipe.csv"):
        assert column_names(str(tmp_path / name)) == []


@pytest.mark.parametrize("texts", [None, ["b c"]])
def test_what_separates_cells_is_found_for_all_readers(tmp_path, texts):
    for mark in ";\t,":
        (tmp_path / "a.csv").write_text(f'a{mark}"b c"\nx{mark}y\n')
        assert read_file(str(tmp_path / "a.csv"), texts).to_pydict() == {"a": ["x"], "b c": ["y"]}
    (tmp_path / "a.csv").write_text('"a, in cm";b\nx;y\n')
    assert read_file(str(tmp_path / "a.csv"), texts or ["b"]).to_pydict() == {"a, in cm": ["x"], "b": ["y"]}


def test_other_encodings_and_lists_are_told_in_plain_words(tmp_path):
    (tmp_path / "a.csv").write_bytes("a,b\nä,1\n".encode("latin-1"))
    (tmp_path / "b.csv").write_bytes("a,b\nx,1\n".encode("utf-16"))
    for name in ("a.csv", "b.csv"):
        with pytest.raises(UserError, match=r"read as csv \(it is not text in UTF-8; save it in that encoding\)"):
            read_file(str(tmp_path / name), None)
    (tmp_path / "c.json").write_text(' [{"a": 1}]')
    with pytest.raises(UserError, match=r"read as json \(it holds a list, expected an object on each line\)"):
        read_file(str(tmp_path / "c.json"), None)
