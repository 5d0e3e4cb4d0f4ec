"""``lighten predict``: answer to files with a model folder.

JSON: ``[{"source", "answer"}]``; of masks and pictures ``answer`` is the path of the PNG that was written.
"""

import argparse
from pathlib import Path
from typing import Any

from lighten.cli.arguments import add_command, errors_of_folder
from lighten.cli.output import print_json, stdout_aside
from lighten.errors import UserError


def add_parser(commands: Any) -> None:
    """Add the command."""
    predict = add_command(
        commands, "predict", "answer to images, tables or texts with a model folder", _predict, json=True,
        more="classes, numbers and odds are printed, masks and pictures are written as PNG",
        example="runs/own_images/20261124-091200/student image.jpg",
    )  # fmt: skip
    predict.add_argument("folder", type=Path, metavar="FOLDER", help="student/ of a run, or one that was pushed")
    predict.add_argument("sources", nargs="+", metavar="SOURCE", help="images, tables (CSV, Parquet, …), or texts")
    predict.add_argument(
        "--file", type=Path, metavar="FILE", help="an exported file to run (default: the PyTorch model)"
    )
    predict.add_argument("--out", type=Path, metavar="DIR", help="of masks and pictures (default: beside their images)")


def _predict(arguments: argparse.Namespace) -> None:
    with errors_of_folder(arguments.folder, "predict"):
        from lighten.delivery.folders.predict import predict

        with stdout_aside(arguments.json):
            found = predict(arguments.folder, arguments.sources, file=arguments.file)
            targets = [_target(source, arguments.out) for source, answer in found if not _is_plain(answer)]
            twice = next((path for path in targets if targets.count(path) > 1), None)
            if twice is not None:
                raise UserError(f"two sources would be answered in {twice}; rename one, or leave --out away")
            shown = [(source, _shown(source, answer, arguments.out)) for source, answer in found]
        if arguments.json:
            print_json([{"source": source, "answer": answer} for source, answer in shown])
        else:
            for source, answer in shown:
                print(f"{source}: {_line(answer)}")


def _shown(source: str, answer: Any, out: Path | None) -> Any:
    """Return an answer in JSON types; an array goes into a file first."""
    if _is_plain(answer):
        return answer
    from lighten.utils.files import write_whole

    target = _target(source, out)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, lambda temporary: _save(answer, temporary))
    return str(target)


def _is_plain(answer: Any) -> bool:
    import numpy as np

    return not isinstance(answer, np.ndarray)


def _target(source: str, out: Path | None) -> Path:
    path = Path(source)
    return (out or path.parent) / f"{path.stem}.answer.png"


def _save(pixels: Any, path: Path) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path, "PNG")


def _line(answer: Any) -> str:
    """Return an answer as a line: a class with its odds, numbers by name, or what it is."""
    if isinstance(answer, dict) and set(answer) == {"class", "odds"}:
        return f"{answer['class']} ({100 * answer['odds']:.1f} %)"
    if isinstance(answer, dict):
        return ", ".join(f"{name} {_number(value)}" for name, value in answer.items())
    if isinstance(answer, list):
        return " ".join(str(_number(value)) for value in answer)
    return str(_number(answer))


def _number(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
