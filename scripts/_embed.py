"""Command line of the scripts that build embedded files."""

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lighten.data.embedded import EmbeddedFile

Subset = TypeVar("Subset")


def main(
    description: str,
    file: EmbeddedFile,
    *,
    folder: str,
    what: str,
    build: Callable[[str], Subset],
    encode: Callable[[Subset], bytes],
    same: Callable[[bytes, Subset], bool],
) -> int:
    """Build or check an embedded file; return the exit code, 1 if it differs.

    Args:
        description: of the script.
        file: to write, or to compare with.
        folder: of the original files, by default.
        what: the subset consists of, for the message.
        build: the subset from a folder.
        encode: the subset as a file.
        same: whether a file's content is exactly that subset.
    """
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--folder", default=folder, help="of the original files")
    parser.add_argument("--output", type=Path, default=Path(str(file.path)))
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the file differs")
    options = parser.parse_args()
    subset = build(options.folder)
    if not options.check:
        content = encode(subset)
        options.output.write_bytes(content)
        print(f"{options.output}: {len(content) / 1e6:.2f} MB, SHA-256 {hashlib.sha256(content).hexdigest()}")
        return 0
    content = options.output.read_bytes()
    same_digest, same_rows = hashlib.sha256(content).hexdigest() == file.sha256, same(content, subset)
    print(f"digest {'agrees' if same_digest else 'DIFFERS'}, {what} {'agree' if same_rows else 'DIFFER'}")
    return 0 if same_digest and same_rows else 1
