"""The console script ``lighten``: the door to training, and each step of delivery alone on a run folder.

Exit codes: 0 done, 1 stopped for a reason that one line explains, 2 wrong arguments or a wrong recipe.
"""

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lighten.errors import UserError, one_line
from lighten.training.files import disk_told

RECIPES = Path("recipes")
"""Where ``lighten train`` and ``lighten recipes`` look, as ``train.py`` does beside itself."""

STEPS = {
    "shrink": "cut what the plan removes out of the network: writes student/",
    "export": "write student.onnx, teacher.onnx and dense.onnx",
    "measure": "measure size, latency and accuracy: writes scores.json",
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
            with _made_elsewhere(arguments.folder, "quantize"), disk_told(arguments.folder):
                _quantize(arguments)
        elif arguments.step == "compare":
            with _made_elsewhere(arguments.runs[0].parent, "compare"):
                _compare(arguments)
        elif arguments.step == "dashboard":
            _dashboard(arguments)
        elif arguments.step == "doctor":
            _doctor(as_json=arguments.json)
        else:
            with _made_elsewhere(arguments.run, arguments.step), disk_told(arguments.run):
                _step(arguments.step)(arguments.run)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
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
    steps.add_parser("train", help="train by recipe, as train.py: lighten train recipe=smoke")
    steps.add_parser("plan", help="print what a recipe would cut and quantize; trains nothing")
    steps.add_parser("recipes", help="list the recipes in ./recipes")
    quantize = _add(
        steps, "quantize", "quantize the trained model of a folder",
        "writes FOLDER-MODE/ and FOLDER-MODE.onnx beside it", "runs/prune_cnn/a/dense --mode static",
    )  # fmt: skip
    quantize.add_argument("folder", type=Path, metavar="FOLDER", help="a model folder, as runs/<recipe>/<id>/dense")
    quantize.add_argument("--mode", default="static", help="static, dynamic, float16 or bfloat16 (default: static)")
    quantize.add_argument("--ranges", default="mse", help="of static: min_max, percentile, mse, entropy, …")
    quantize.add_argument("--weight-bits", type=int, default=8, help="2 to 8, of static and dynamic")
    quantize.add_argument("--calibration", type=int, default=512, help="samples of the validation split, for static")
    quantize.add_argument("--exclude", nargs="*", default=[], metavar="LAYER", help="names, patterns or types")
    compare = _add(
        steps, "compare", "compare runs in a table and a page",
        "writes compare.html beside them, with the Pareto front", "runs/distil_cnn/* --sort bytes",
    )  # fmt: skip
    compare.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, runs/<recipe>/<id>")
    compare.add_argument("--sort", default="accuracy", help="accuracy, kept, bytes, latency, faster, … (best first)")
    compare.add_argument("--out", type=Path, metavar="FILE", help="of the page (default: in their common folder)")
    compare.add_argument("--json", action="store_true", help="print the figures as JSON instead of a table")
    dashboard = _add(
        steps, "dashboard", "make a W&B workspace for a project's runs",
        "student against teacher, compression, speed, system", "--entity me --project lighten",
    )  # fmt: skip
    dashboard.add_argument("--entity", required=True, help="the W&B user or team that the project belongs to")
    dashboard.add_argument("--project", default="lighten", help="the W&B project (default: lighten, as runs have it)")
    dashboard.add_argument("--dry-run", action="store_true", help="print what would be sent, as JSON, and send nothing")
    doctor = _add(
        steps, "doctor", "tell what is installed and what this machine can do",
        "packages, targets, threads, devices, the cluster", "--json",
    )  # fmt: skip
    doctor.add_argument("--json", action="store_true", help="print JSON")
    for name, text in STEPS.items():
        step = _add(steps, name, text, "", "runs/distil_cnn/20260101-120000")
        step.add_argument("run", type=Path, metavar="RUN", help="a run folder, runs/<recipe>/<id>")
    return parser


def _add(steps: Any, name: str, text: str, more: str, example: str) -> argparse.ArgumentParser:
    """Add a step: a line for the list of steps, what its own help says beside it, and arguments as an example."""
    whole = f"{text}: {more}" if more else text
    return steps.add_parser(name, help=text, description=whole, epilog=f"example: lighten {name} {example}")


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


@contextmanager
def _made_elsewhere(run: Path, step: str) -> Iterator[None]:
    """Tell in one line what a step stumbles over: a run folder may come from anyone and hold anything."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__}: {error}, {Path(last.filename).name} line {last.lineno}"
        raise UserError(f"{run}: `lighten {step}` cannot read it ({where}); make its files again") from error


def _compare(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from lighten.delivery.compare import compare_runs, comparison_json, comparison_table, summary, write_comparison

    runs = compare_runs(arguments.runs, sort=arguments.sort)
    page = write_comparison(runs, arguments.out, sort=arguments.sort)
    if arguments.json:
        print(comparison_json(runs))
    else:
        Console(width=None if sys.stdout.isatty() else 140).print(comparison_table(runs))
        print(f"{summary(runs)}\n{page}")


def _doctor(*, as_json: bool) -> None:
    """Print what was found.

    Raises:
        UserError: if something must be mended.
    """
    from lighten.doctor import as_rows, examine

    findings = examine()
    if as_json:
        print(json.dumps(as_rows(findings), indent=2))
    else:
        marks = {"ok": "ok", "missing": "--", "warning": "!!"}
        for finding in findings:
            print(f"{marks[finding.state]}  {finding.part:8}  {finding.name:20}  {finding.found}")
    if bad := [f"{finding.name}: {finding.found}" for finding in findings if finding.state == "warning"]:
        raise UserError(f"{len(bad)} to be mended; {bad[0]}")


def _dashboard(arguments: argparse.Namespace) -> None:
    from lighten.dashboard import as_json, publish, workspace

    made = workspace(arguments.entity, arguments.project)
    print(as_json(made) if arguments.dry_run else publish(made))


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

    recipe = _recipe_of(run)
    checks = verify_run(run, recipe=recipe, say=lambda stage: print(f"{stage} …", file=sys.stderr))
    width = max(len(check.name) for check in checks)
    for check in checks:
        mark = "note" if check.note else "ok" if check.good else "BAD"
        print(f"{mark:4}  {check.name:{width}}  {check.claimed}  {check.found}")
    if bad := failures(checks):
        raise UserError(f"{run}: {len(bad)} of {len(checks)} claims do not hold; {bad[0]}")


def _recipe_of(run: Path) -> str | None:
    """Return the SHA-256 of what a run was asked for; ``None`` if that cannot be read."""
    from lighten.recipe import load_recipe
    from lighten.run_folder import settings_of
    from lighten.training.reference import fingerprint_of

    path = run / "recipe.yaml"
    return fingerprint_of(**settings_of(load_recipe(path))) if path.is_file() else None


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
