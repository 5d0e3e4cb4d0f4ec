"""Rows from files and from the ``datasets`` library, as Arrow tables; no code of a data set is ever run."""

import codecs
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from lighten.data.checks import first_line
from lighten.errors import UserError

SUFFIXES = (".csv", ".tsv", ".parquet", ".json", ".jsonl")
_PEEKED = 1 << 20
"""Bytes of a file that are looked at for what is wrong with it."""


@dataclass(frozen=True)
class Splits:
    """A data set's splits by name, and the names of the classes of the columns that know theirs."""

    tables: dict[str, pa.Table]
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)


def is_file_name(path: str) -> bool:
    """Return whether ``path`` is that of a file: by its suffix, or as there is one."""
    return Path(path).suffix.lower() in SUFFIXES or os.path.isfile(path)


def read_file(path: str, texts: Iterable[str] | None) -> pa.Table:
    """Return the rows of a CSV, TSV, Parquet or JSON-lines file.

    Args:
        path: its suffix tells the format. CSV and TSV have a head line and are UTF-8.
        texts: columns of CSV and TSV that are text whatever they look like; ``None`` for all of them.

    Raises:
        UserError: if the file is missing, cannot be read, or has another suffix.
    """
    from pyarrow import csv, parquet
    from pyarrow import json as json_lines

    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path} ends in {suffix or 'no suffix'!r}, expected one of {', '.join(SUFFIXES)}")
    if not os.path.isfile(path):
        raise UserError(f"{path} is missing; give the path of a file that is there")
    try:
        if suffix == ".parquet":
            return parquet.read_table(path)
        if suffix in (".json", ".jsonl"):
            return json_lines.read_json(path, parse_options=json_lines.ParseOptions(newlines_in_values=False))
        texts = column_names(path) if texts is None else texts
        return csv.read_csv(
            path,
            parse_options=csv.ParseOptions(delimiter=delimiter_of(path), newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types={name: pa.string() for name in texts}),
        )
    except (pa.ArrowException, OSError) as error:
        reason = _why_not(path, suffix) or first_line(error)
        raise UserError(f"{path} cannot be read as {suffix[1:]} ({reason}); fix or replace the file") from error


def column_names(path: str) -> list[str]:
    """Return the names of a file's columns; none where it cannot be read, which :func:`read_file` reports."""
    from pyarrow import csv, parquet

    suffix = Path(path).suffix.lower()
    if not os.path.isfile(path):  # a pipe would be waited for
        return []
    try:
        if suffix == ".parquet":
            return list(parquet.read_schema(path).names)
        if suffix in (".json", ".jsonl"):
            with open(path, encoding="utf-8") as file:
                return list(json.loads(file.readline()))
        parsing = csv.ParseOptions(delimiter=delimiter_of(path), newlines_in_values=True)
        with csv.open_csv(path, parse_options=parsing) as reader:
            return list(reader.schema.names)
    except (pa.ArrowException, OSError, ValueError, TypeError, RecursionError):
        return []


def delimiter_of(path: str) -> str:
    """Return what separates the cells of a CSV or TSV file: what the head line has most of outside of quotes."""
    if Path(path).suffix.lower() == ".tsv":
        return "\t"
    with open(path, "rb") as file:
        head = re.sub(rb'"[^"]*"?', b"", file.readline())
    return max(",;\t", key=lambda mark: head.count(mark.encode()))  # a comma where there is none of them


def _why_not(path: str, suffix: str) -> str | None:
    """Return why a file of text is none that is read, where the reader's own words would not say it."""
    with open(path, "rb") as file:
        start = file.read(_PEEKED)
    if suffix in (".json", ".jsonl"):
        whole = start.lstrip(codecs.BOM_UTF8 + b" \t\r\n")
        return "it holds a list, expected an object on each line" if whole.startswith(b"[") else None
    if suffix != ".parquet":
        try:
            codecs.getincrementaldecoder("utf-8")().decode(start)
        except UnicodeDecodeError:
            return "it is not text in UTF-8; save it in that encoding"
    return None


def read_hub(path: str, config: str | None = None) -> Splits:
    """Return all splits of a data set on the hub, in the cache of ``datasets``, or in a local folder.

    Args:
        path: as ``datasets.load_dataset`` takes it.
        config: name of a part of it; for a local copy, that of a folder with files like
            ``train-00000-of-00001.parquet``.

    Raises:
        UserError: if it can be had from none of these.
    """
    from datasets import ClassLabel, load_dataset, load_dataset_builder

    try:
        files = _split_files(Path(path) / config) if config is not None else {}
        if not files and os.path.isdir(path):
            _check_inside(path, load_dataset_builder(path, config).config.data_files or {})
        found = load_dataset("parquet", data_files=files) if files else load_dataset(path, config)
        tables = {str(name): split.with_format("arrow")[:] for name, split in found.items()}
        columns = next(iter(found.values())).features.items()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"data set {path!r}{f', {config}' if config else ''} cannot be had from the hub or from the cache of "
            f"`datasets` ({first_line(error)}); fetch it once with a network, or give a folder or a file"
        ) from error
    return Splits(tables, {name: tuple(kind.names) for name, kind in columns if isinstance(kind, ClassLabel)})


def _check_inside(folder: str, splits: Mapping[Any, Iterable[str]]) -> None:
    """Refuse a local data set that names files elsewhere: its folder may come from anyone."""
    for name in (name for names in splits.values() for name in names):
        if not os.path.abspath(name).startswith(os.path.join(os.path.abspath(folder), "")):
            raise UserError(f"data set {folder!r} names a file outside of its folder, {name}; give a folder of its own")


def _split_files(folder: Path) -> dict[str, list[str]]:
    """Return the Parquet files of each split; ``datasets`` would take ``validation_matched`` for ``validation``."""
    files: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*.parquet")):
        files.setdefault(re.sub(r"-\d+-of-\d+$", "", file.stem), []).append(str(file))
    return files
