"""``lighten init``: write a starting project, which runs as it is: ``train.py``, a recipe, job scripts."""

import argparse
from pathlib import Path
from typing import Any

from lighten.cli.arguments import add_command
from lighten.errors import UserError
from lighten.utils.files import name_target_in_errors
from lighten.utils.shipped import shipped


def add_parser(commands: Any) -> None:
    """Add the command."""
    init = add_command(
        commands, "init", "write a starting train.py, recipe and job scripts", _init,
        more="a project that runs unchanged; no file is overwritten", example="my-project",
    )  # fmt: skip
    init.add_argument(
        "folder", nargs="?", type=Path, default=Path(), metavar="FOLDER", help="where (default: the current folder)"
    )


def _init(arguments: argparse.Namespace) -> None:
    for path in write_start(arguments.folder):
        print(path)
    there = "" if arguments.folder == Path() else f"cd {arguments.folder} && "
    print(f"next: {there}python train.py recipe=mine")


def write_start(folder: Path) -> list[Path]:
    """Write a starting project into ``folder``, which is made where it is missing, and return its files.

    Raises:
        UserError: if one of the files is there already, or the disk refuses; then none is written.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, expected a folder; give another, as: lighten init my-project")
    start, jobs = shipped("start"), shipped("slurm")
    texts = {path.relative_to(start): path.read_bytes() for path in sorted(start.rglob("*")) if path.is_file()}
    texts |= {Path("slurm") / path.name: path.read_bytes() for path in sorted(jobs.glob("*.sbatch"))}
    files = {folder / name: text for name, text in texts.items() if "__pycache__" not in name.parts}
    if there := [str(path) for path in files if path.exists() or path.is_symlink()]:
        raise UserError(f"{', '.join(there)}: there already; give another folder, as: lighten init my-project")
    written: list[Path] = []
    try:
        with name_target_in_errors(folder):
            for path, text in files.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as file:
                    written.append(path)
                    file.write(text)
    except BaseException:
        for path in written:
            path.unlink()
        raise
    return written
