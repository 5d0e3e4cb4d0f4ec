"""``lighten quantize``: quantize the trained model of a folder."""

import argparse
from pathlib import Path
from typing import Any

from lighten.cli.arguments import add_command, add_words, errors_of_folder
from lighten.quantization.settings import POST_TRAINING_MODES, POST_TRAINING_RANGES, RANGES, STATIC, QuantizeSettings


def add_parser(commands: Any) -> None:
    """Add the command."""
    quantize = add_command(
        commands, "quantize", "quantize the trained model in a folder", _quantize,
        more="writes FOLDER-MODE/ and FOLDER-MODE.onnx beside it", example="runs/prune_cnn/a/dense --mode static",
    )  # fmt: skip
    quantize.add_argument(
        "folder", type=Path, metavar="FOLDER", help="a model folder, such as runs/<recipe>/<id>/dense"
    )
    bits, samples = QuantizeSettings.weight_bits, QuantizeSettings.calibration
    mode = quantize.add_argument("--mode", default=STATIC, help="static, dynamic, float16 or bfloat16")
    add_words(mode, lambda: POST_TRAINING_MODES)
    ranges = quantize.add_argument(
        "--ranges", default=POST_TRAINING_RANGES, help="for static: min_max, mse, entropy, …"
    )
    add_words(ranges, lambda: [name for name in RANGES if name != "lsq"])
    quantize.add_argument("--weight-bits", type=int, default=bits, help="2 to 8, for static and dynamic")
    quantize.add_argument("--calibration", type=int, default=samples, help="samples of the validation split to use")
    quantize.add_argument(
        "--exclude",
        nargs="*",
        default=[],
        metavar="LAYER",
        help="layers to leave in float: names, patterns, types",
    )


def _quantize(arguments: argparse.Namespace) -> None:
    from lighten.delivery.export.targets import export_onnx
    from lighten.delivery.folders.model import CONFIG, load
    from lighten.delivery.folders.run import read_json
    from lighten.delivery.folders.student import quantize_folder
    from lighten.quantization.activation_quantizers import QUANTIZERS
    from lighten.quantization.table import format_rows, quantization_rows
    from lighten.utils.inputs import example_of

    wanted = {key: getattr(arguments, key) for key in ("calibration", "ranges", "weight_bits", "exclude")}
    with errors_of_folder(arguments.folder, "quantize"):
        folder = quantize_folder(arguments.folder, arguments.mode, **wanted)
        model = load(folder)
        shape = read_json(folder / CONFIG, made_by="lighten quantize")["model"]["input_shape"]
        path = export_onnx(model, example_of(shape), folder.with_name(f"{folder.name}.onnx"))
        if hasattr(model, QUANTIZERS):
            print(format_rows(quantization_rows(model)))
        print(f"{folder}\n{path} ({path.stat().st_size:,} bytes)")
