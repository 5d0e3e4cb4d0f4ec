"""The console script ``lighten``: the door to training, and each step of delivery alone on a run folder.

Exit codes: 0 done, 1 stopped for a reason that one line explains, 2 wrong arguments or a wrong recipe, 143 a run that a
signal stopped and that the same command goes on with.

With ``--json`` a step prints JSON, and that alone, to standard output; progress and errors go to standard error:

- ``plan``: an array of :func:`lighten.cli.plan.plan_json`, one a recipe;
- ``recipes``: an array of ``{"name", "for", "command", "file"}``, the first two comments of each and its path;
- ``export``: ``{"run", "files"}`` with ``{"file", "bytes", "sha256"}`` of each file, by its name in the run folder;
- ``measure``: what ``scores.json`` holds;
- ``verify``: ``{"run", "good", "checks"}`` with ``{"name", "claimed", "found", "good", "note"}`` of each claim; it ends
  with 1 where one does not hold;
- ``compare``: an array, of each run ``name``, ``folder``, ``differs``, ``pareto``, ``data``, ``machine`` and the
  figures that ``--sort`` knows;
- ``doctor``: an array of ``{"part", "name", "state", "found"}``, see :class:`lighten.cli.doctor.Finding`.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lighten.cli.arguments import OF_A_RUN, parser
from lighten.cli.output import print_json, stdout_aside
from lighten.cli.registered import check_registered
from lighten.errors import UserError, one_line
from lighten.utils.files import disk_errors_as_user_errors

if TYPE_CHECKING:
    from lighten.delivery.progress import ProgressCallback

RECIPES = Path("recipes")
"""Where ``lighten train`` and ``lighten recipes`` look, as ``train.py`` does beside itself."""


def main(argv: Sequence[str] | None = None, *, recipes: Path = RECIPES) -> int:
    """Run one step and return its exit code.

    Args:
        argv: the arguments; ``None`` takes the command line's.
        recipes: the folder of ``NAME.yaml`` files.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] in (["train"], ["plan"]) and not {"-h", "--help"} & set(argv):
        return _by_recipe(argv[0], argv[1:], recipes)
    arguments = parser().parse_args(argv)
    try:
        if arguments.step in OF_A_RUN:
            with _made_elsewhere(arguments.run, arguments.step), disk_errors_as_user_errors(arguments.run):
                _on_a_run(arguments)
        else:
            _OTHERS[arguments.step](arguments, recipes)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough, as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _by_recipe(step: str, argv: Sequence[str], recipes: Path) -> int:
    from lighten.cli.train import main as launch
    from lighten.cli.train import plan

    if not recipes.is_dir():
        print(f"error: {recipes.absolute()}: no such folder; run this where recipes/ is", file=sys.stderr)
        return 2
    if step == "plan":
        return plan([word for word in argv if word != "--json"], recipes, as_json="--json" in argv)
    return launch(argv, recipes)


def _on_a_run(arguments: argparse.Namespace) -> None:
    """Run a step; where it fails on a model or data that nobody has registered here, say who can do it."""
    try:
        _OF_A_RUN.get(arguments.step, _make)(arguments)
    except UserError:
        check_registered(arguments.run, arguments.step)
        raise


@contextmanager
def _made_elsewhere(run: Path, step: str) -> Iterator[None]:
    """Tell in one line what a step stumbles over: a run folder may come from anyone and hold anything."""
    try:
        yield
    except (UserError, BrokenPipeError):
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__}: {error}, {Path(last.filename).name} line {last.lineno}"
        raise UserError(f"{run}: `lighten {step}` cannot read it ({where}); make its files again") from error


@contextmanager
def _progress(step: str, *, ticks: bool = True) -> Iterator["ProgressCallback"]:
    from rich.console import Console

    from lighten.delivery.progress import progress

    with progress(step, Console(stderr=True), ticks=ticks) as on_progress:
        yield on_progress


def _make(arguments: argparse.Namespace) -> None:
    if arguments.step == "shrink":
        from lighten.delivery.folders.student import shrink_run as make
    elif arguments.step == "card":
        from lighten.delivery.report.card import write_card as make
    else:
        from lighten.delivery.report.page import write_report as make
    print(make(arguments.run))


def _export(arguments: argparse.Namespace) -> None:
    from lighten.delivery.export.targets import export_run
    from lighten.delivery.folders.run import sha256

    run = arguments.run
    with stdout_aside(arguments.json), _progress("export") as on_progress:
        paths = export_run(run, on_progress=on_progress)
    files = [{"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)} for path in paths]
    if arguments.json:
        print_json({"run": str(run), "files": files})
    else:
        print("\n".join(f"{run / str(made['file'])} ({made['bytes']:,} bytes)" for made in files))


def _measure(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from lighten.delivery.folders.run import read_json
    from lighten.delivery.measure.measure import measure_run
    from lighten.delivery.report.table import closing_table

    with stdout_aside(arguments.json), _progress("measure", ticks=False) as on_progress:
        scores = measure_run(arguments.run, on_progress=on_progress)
    if arguments.json:
        print_json(read_json(arguments.run / "scores.json", made_by="lighten measure RUN"))
    else:
        Console().print(closing_table(scores))


def _verify(arguments: argparse.Namespace) -> None:
    """Print every claim with what was found.

    Raises:
        UserError: if one does not hold.
    """
    from lighten.delivery.verify import failures, verify_run

    run = arguments.run
    with stdout_aside(arguments.json), _progress("verify") as on_progress:
        checks = verify_run(run, recipe=_recipe_of(run), on_progress=on_progress)
    bad = failures(checks)
    if arguments.json:
        print_json({"run": str(run), "good": not bad, "checks": [asdict(check) for check in checks]})
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            mark = "note" if check.note else "ok" if check.good else "BAD"
            print(f"{mark:4}  {check.name:{width}}  {check.claimed}  {check.found}")
    if bad:
        raise UserError(f"{run}: {len(bad)} of {len(checks)} claims do not hold; {bad[0]}")


def _recipe_of(run: Path) -> str | None:
    """Return the SHA-256 of what a run was asked for; ``None`` if that cannot be read."""
    from lighten.recipe.schema import load_recipe
    from lighten.run.folder import settings_of
    from lighten.utils.fingerprint import fingerprint_of

    path = run / "recipe.yaml"
    return fingerprint_of(**settings_of(load_recipe(path))) if path.is_file() else None


def _compare(arguments: argparse.Namespace, recipes: Path) -> None:
    from rich.console import Console

    from lighten.delivery.report.compare import (
        compare_runs,
        comparison_json,
        comparison_table,
        summary,
        write_comparison,
    )

    with _made_elsewhere(arguments.runs[0].parent, "compare"):
        runs = compare_runs(arguments.runs, sort=arguments.sort)
        page = write_comparison(runs, arguments.out, sort=arguments.sort)
    if arguments.json:
        print(comparison_json(runs))
    else:
        Console(width=None if sys.stdout.isatty() else 140).print(comparison_table(runs))
        print(f"{summary(runs)}\n{page}")


def _quantize(arguments: argparse.Namespace, recipes: Path) -> None:
    from lighten.delivery.export.targets import export_onnx
    from lighten.delivery.folders.model import CONFIG, load
    from lighten.delivery.folders.run import read_json
    from lighten.delivery.folders.student import quantize_folder
    from lighten.quantization.activation_quantizers import QUANTIZERS
    from lighten.quantization.table import format_rows, quantization_rows
    from lighten.utils.inputs import example_of

    wanted = {key: getattr(arguments, key) for key in ("calibration", "ranges", "weight_bits", "exclude")}
    with _made_elsewhere(arguments.folder, "quantize"), disk_errors_as_user_errors(arguments.folder):
        folder = quantize_folder(arguments.folder, arguments.mode, **wanted)
        model = load(folder)
        shape = read_json(folder / CONFIG, made_by="lighten quantize")["model"]["input_shape"]
        path = export_onnx(model, example_of(shape), folder.with_name(f"{folder.name}.onnx"))
        if hasattr(model, QUANTIZERS):
            print(format_rows(quantization_rows(model)))
        print(f"{folder}\n{path} ({path.stat().st_size:,} bytes)")


def _push(arguments: argparse.Namespace, recipes: Path) -> None:
    from lighten.delivery.folders.hub import push_to_hub

    run, student = arguments.run, arguments.run / "student"
    print(push_to_hub(student if student.is_dir() else run, arguments.repo, private=arguments.private))


def _dashboard(arguments: argparse.Namespace, recipes: Path) -> None:
    from lighten.delivery.report.workspace import as_json, publish, workspace

    made = workspace(arguments.entity, arguments.project)
    print(as_json(made) if arguments.dry_run else publish(made))


def _doctor(arguments: argparse.Namespace, recipes: Path) -> None:
    """Print what was found.

    Raises:
        UserError: if something must be mended.
    """
    from lighten.cli.doctor import as_rows, examine

    with stdout_aside(arguments.json):
        findings = examine()
    if arguments.json:
        print_json(as_rows(findings))
    else:
        marks = {"ok": "ok", "missing": "--", "warning": "!!"}
        for finding in findings:
            print(f"{marks[finding.state]}  {finding.part:8}  {finding.name:20}  {finding.found}")
    if bad := [f"{finding.name}: {finding.found}" for finding in findings if finding.state == "warning"]:
        raise UserError(f"{len(bad)} to be mended; {bad[0]}")


def _completion(arguments: argparse.Namespace, recipes: Path) -> None:
    from lighten.cli.completion import script

    print(script(arguments.shell))


def _recipes(arguments: argparse.Namespace, recipes: Path) -> None:
    files = sorted(recipes.glob("*.yaml"))
    if not files:
        raise UserError(f"{recipes.absolute()}: holds no recipe; run this where recipes/ is")
    rows = [(path, [line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines()]) for path in files]
    if arguments.json:
        keys = ("name", "for", "command", "file")
        print_json([dict(zip(keys, [path.stem, *_two(lines), str(path)], strict=True)) for path, lines in rows])
        return
    width = max(len(path.stem) for path in files)
    for path, lines in rows:
        print(f"{path.stem:{width}}  {_two(lines)[0]}")


def _two(lines: Sequence[str]) -> list[str]:
    """Return the first two lines, empty where there are fewer."""
    return [*lines[:2], "", ""][:2]


_OF_A_RUN: dict[str, Callable[[argparse.Namespace], None]] = {
    "export": _export, "measure": _measure, "verify": _verify,
}  # fmt: skip
_OTHERS: dict[str, Callable[[argparse.Namespace, Path], Any]] = {
    "recipes": _recipes, "compare": _compare, "quantize": _quantize, "push": _push, "dashboard": _dashboard,
    "doctor": _doctor, "completion": _completion,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
