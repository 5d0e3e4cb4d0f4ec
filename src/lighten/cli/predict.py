"""``lighten predict``: run a model folder on files.

JSON: ``[{"source", "answer"}]``; for masks and pictures ``answer`` is the path of the PNG that was written. Boxes and
points are in pixels of the picture, ``[{"box" or "point", "label", "odds"}]``, and ``drawn`` is a PNG with them.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lighten.cli.arguments import add_command, errors_of_folder
from lighten.cli.output import print_json, stdout_aside
from lighten.errors import UserError


def add_parser(commands: Any) -> None:
    """Add the command."""
    predict = add_command(
        commands, "predict", "run a model folder on images, tables or texts", _predict, json=True,
        more="prints classes, probabilities, numbers and boxes; writes masks, pictures and drawn boxes as PNG",
        example="runs/own_images/20261124-091200/student image.jpg",
    )  # fmt: skip
    predict.add_argument("folder", type=Path, metavar="FOLDER", help="student/ of a run, or a downloaded model folder")
    predict.add_argument("sources", nargs="+", metavar="SOURCE", help="images, tables (CSV, Parquet, …), or texts")
    predict.add_argument(
        "--file", type=Path, metavar="FILE", help="an exported file to run (default: the PyTorch model)"
    )
    predict.add_argument("--out", type=Path, metavar="DIR", help="folder for PNG files (default: beside their images)")


def _predict(arguments: argparse.Namespace) -> None:
    with errors_of_folder(arguments.folder, "predict"):
        from lighten.delivery.folders.model import CONFIG
        from lighten.delivery.folders.predict import predict
        from lighten.delivery.folders.run import read_json

        with stdout_aside(arguments.json):
            found = predict(arguments.folder, arguments.sources, file=arguments.file)
            targets = [_target(source, arguments.out) for source, answer in found if not _is_plain(answer)]
            twice = next((path for path in targets if targets.count(path) > 1), None)
            if twice is not None:
                raise UserError(f"two sources would be written to {twice}; rename one, or leave out --out")
            names = read_json(arguments.folder / CONFIG, made_by="lighten shrink RUN").get("classes", [])
            shown = [_shown(source, answer, arguments.out, names) for source, answer in found]
        if arguments.json:
            print_json(shown)
        else:
            for row in shown:
                print(f"{row['source']}: {_line(row['answer'])}")


def _shown(source: str, answer: Any, out: Path | None, names: Sequence[str]) -> dict[str, Any]:
    """Return a source and its answer in JSON types; a picture goes into a file first."""
    if _is_plain(answer):
        return {"source": source, "answer": answer}
    from lighten.utils.files import write_whole

    target = _target(source, out)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, lambda temporary: _save(_pixels(source, answer, names), temporary))
    if _is_marks(answer):
        return {"source": source, "answer": answer, "drawn": str(target)}
    return {"source": source, "answer": str(target)}


def _pixels(source: str, answer: Any, names: Sequence[str]) -> Any:
    """Return a picture to be written: the answer, or the source with what the answer marks."""
    if not _is_marks(answer):
        return answer
    from PIL import Image, ImageOps

    from lighten.delivery.measure.marked import draw_marks

    with Image.open(source) as picture:
        return draw_marks(ImageOps.exif_transpose(picture), answer, names)


def _is_marks(answer: Any) -> bool:
    return isinstance(answer, list) and all(isinstance(mark, dict) for mark in answer)


def _is_plain(answer: Any) -> bool:
    import numpy as np

    return not isinstance(answer, np.ndarray) and not _is_marks(answer)


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
    if _is_marks(answer):
        return ", ".join(map(_marked, answer)) or "nothing"
    if isinstance(answer, list):
        return " ".join(str(_number(value)) for value in answer)
    return str(_number(answer))


def _marked(mark: Mapping[str, Any]) -> str:
    """Return a box or point as a person reads it, in pixels."""
    place = ", ".join(f"{value:.0f}" for value in mark["box" if "box" in mark else "point"])
    odds = "" if mark["odds"] is None else f" ({100 * mark['odds']:.1f} %)"
    return f"{mark['label']}{odds} at {place}"


def _number(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
