"""``lighten quantize``: quantize the trained model of a folder."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lighten.cli.arguments import add_command, add_words, errors_of_folder


def add_parser(commands: Any) -> None:
    """Add the command."""
    quantize = add_command(
        commands, "quantize", "quantize the trained model of a folder", _quantize,
        more="writes FOLDER-MODE/ and FOLDER-MODE.onnx beside it", example="runs/prune_cnn/a/dense --mode static",
    )  # fmt: skip
    quantize.add_argument("folder", type=Path, metavar="FOLDER", help="a model folder, as runs/<recipe>/<id>/dense")
    mode = quantize.add_argument(
        "--mode", default="static", help="static, dynamic, float16 or bfloat16 (default: static)"
    )
    add_words(mode, _modes)
    ranges = quantize.add_argument("--ranges", default="mse", help="of static: min_max, percentile, mse, entropy, …")
    add_words(ranges, _ranges)
    quantize.add_argument("--weight-bits", type=int, default=8, help="2 to 8, of static and dynamic")
    quantize.add_argument("--calibration", type=int, default=512, help="samples of the validation split, for static")
    quantize.add_argument("--exclude", nargs="*", default=[], metavar="LAYER", help="names, patterns or types")


def _modes() -> Sequence[str]:
    from lighten.quantization.post_training import MODES

    return MODES


def _ranges() -> Sequence[str]:
    from lighten.recipe.schema import RANGES

    return tuple(name for name in RANGES if name not in ("auto", "lsq"))


def _quantize(arguments: argparse.Namespace) -> None:
    from lighten.delivery.export.targets import export_onnx
    from lighten.delivery.folders.model import CONFIG, load
    from lighten.delivery.folders.run import read_json
    from lighten.delivery.folders.student import quantize_folder
    from lighten.quantization.insert import BANK
    from lighten.quantization.table import format_rows, quantization_rows
    from lighten.utils.inputs import example_of

    wanted = {key: getattr(arguments, key) for key in ("calibration", "ranges", "weight_bits", "exclude")}
    with errors_of_folder(arguments.folder, "quantize"):
        folder = quantize_folder(arguments.folder, arguments.mode, **wanted)
        model = load(folder)
        shape = read_json(folder / CONFIG, made_by="lighten quantize")["model"]["input_shape"]
        path = export_onnx(model, example_of(shape), folder.with_name(f"{folder.name}.onnx"))
        if hasattr(model, BANK):
            print(format_rows(quantization_rows(model)))
        print(f"{folder}\n{path} ({path.stat().st_size:,} bytes)")
