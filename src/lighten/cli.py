"""The console script ``lighten``: the door to training, and each step of delivery alone on a run folder.

Exit codes: 0 done, 1 stopped for a reason that one line explains, 2 wrong arguments or a wrong recipe.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lighten.errors import UserError

RECIPES = Path("recipes")
"""Where ``lighten train`` and ``lighten recipes`` look, as ``train.py`` does beside itself."""

STEPS = {
    "shrink": "cut what the plan removes out of the last good checkpoint: writes student/",
    "export": "write student.onnx, and teacher.onnx and dense.onnx beside it",
    "measure": "measure size, latency, accuracy and agreement of those files: writes scores.json",
    "card": "write the model card, student/README.md",
    "report": "write report.html",
    "verify": "check what scores.json claims",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code.

    Args:
        argv: the arguments; ``None`` takes the command line's.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] in (["train"], ["plan"]):
        return _by_recipe(argv[0], argv[1:])
    arguments = _parser().parse_args(argv)
    try:
        if arguments.step == "recipes":
            _print_recipes()
        elif arguments.step == "quantize":
            _quantize(arguments)
        else:
            _step(arguments.step)(arguments.run)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _by_recipe(step: str, argv: Sequence[str]) -> int:
    from lighten.launch import main as launch
    from lighten.launch import plan

    if not RECIPES.is_dir():
        print(f"error: {RECIPES.absolute()}: no such folder; run this where recipes/ is", file=sys.stderr)
        return 2
    return plan(argv, RECIPES) if step == "plan" and not {"-h", "--help"} & set(argv) else launch(argv, RECIPES)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lighten", description="Networks made small and fast while they train.")
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    steps.add_parser("train", help="train by recipe, as train.py does: lighten train recipe=distil_cnn")
    steps.add_parser(
        "plan", help="print what a recipe would prune and quantize, and train nothing: lighten plan recipe=prune_cnn"
    )
    steps.add_parser("recipes", help="list the recipes in ./recipes")
    text = "quantize the trained model of a folder: writes FOLDER-MODE/ and FOLDER-MODE.onnx beside it"
    quantize = steps.add_parser(
        "quantize", help=text, description=text, epilog="example: lighten quantize runs/prune_cnn/a/dense --mode static"
    )
    quantize.add_argument("folder", type=Path, metavar="FOLDER", help="a model folder, as runs/<recipe>/<id>/dense")
    quantize.add_argument("--mode", default="static", help="static, dynamic, float16 or bfloat16 (default: static)")
    quantize.add_argument("--ranges", default="mse", help="of static: min_max, percentile, mse, entropy, …")
    quantize.add_argument("--weight-bits", type=int, default=8, help="2 to 8, of static and dynamic")
    quantize.add_argument("--calibration", type=int, default=512, help="samples of the validation split, for static")
    quantize.add_argument("--exclude", nargs="*", default=[], metavar="LAYER", help="names, patterns or types")
    for name, text in STEPS.items():
        example = f"example: lighten {name} runs/distil_cnn/20260101-120000"
        step = steps.add_parser(name, help=text, description=text, epilog=example)
        step.add_argument("run", type=Path, metavar="RUN", help="a run folder, runs/<recipe>/<id>")
    return parser


def _step(name: str) -> Callable[[Path], object]:
    if name == "shrink":
        from lighten.delivery.student import shrink_run

        return shrink_run
    if name == "export":
        from lighten.delivery.export import export_run

        return export_run
    if name == "measure":
        return _measure
    if name == "verify":
        return _verify
    if name == "card":
        from lighten.delivery.card import write_card

        return write_card
    from lighten.delivery.report import write_report

    return write_report


def _quantize(arguments: argparse.Namespace) -> None:
    from lighten.delivery.artifacts import read_json
    from lighten.delivery.export import export_onnx
    from lighten.delivery.folder import CONFIG, load
    from lighten.delivery.student import quantize_folder
    from lighten.example import example_of
    from lighten.quantization.insert import BANK
    from lighten.quantization.table import format_rows, quantization_rows

    folder = quantize_folder(
        arguments.folder,
        arguments.mode,
        calibration=arguments.calibration,
        ranges=arguments.ranges,
        weight_bits=arguments.weight_bits,
        exclude=arguments.exclude,
    )
    model = load(folder)
    shape = read_json(folder / CONFIG, made_by="lighten quantize")["model"]["input_shape"]
    path = export_onnx(model, example_of(shape), folder.with_name(f"{folder.name}.onnx"))
    if hasattr(model, BANK):
        print(format_rows(quantization_rows(model)))
    print(f"{folder}\n{path} ({path.stat().st_size:,} bytes)")


def _measure(run: Path) -> None:
    from rich.console import Console

    from lighten.delivery.measure import measure_run
    from lighten.delivery.table import closing_table

    Console().print(closing_table(measure_run(run)))


def _verify(run: Path) -> None:
    """Print every claim with what was found.

    Raises:
        UserError: if one does not hold.
    """
    from lighten.delivery.verify import failures, verify_run

    checks = verify_run(run, say=lambda stage: print(f"{stage} …", file=sys.stderr))
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{'ok ' if check.good else 'BAD'}  {check.name:{width}}  {check.claimed}  {check.found}")
    if bad := failures(checks):
        raise UserError(f"{run}: {len(bad)} of {len(checks)} claims do not hold; {bad[0]}")


def _print_recipes() -> None:
    files = sorted(RECIPES.glob("*.yaml"))
    if not files:
        raise UserError(f"{RECIPES.absolute()}: holds no recipe; run this where recipes/ is")
    width = max(len(path.stem) for path in files)
    for path in files:
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        print(f"{path.stem:{width}}  {first.lstrip('# ')}")


if __name__ == "__main__":
    sys.exit(main())
