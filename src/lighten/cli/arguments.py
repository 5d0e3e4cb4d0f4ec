"""The arguments of ``lighten``: every step with what it takes, its help and an example."""

import argparse
from pathlib import Path
from typing import Any

from lighten.quantization.settings import POST_TRAINING_RANGES, STATIC, QuantizeSettings

STEPS = {
    "train": "train by recipe, as train.py",
    "plan": "print what a recipe would cut and quantize; trains nothing",
    "recipes": "list the recipes in ./recipes",
    "shrink": "cut what the plan removes out of the network: writes student/",
    "export": "write student.onnx, teacher.onnx and dense.onnx",
    "measure": "measure size, latency and accuracy: writes scores.json",
    "card": "write the model card, student/README.md",
    "report": "write report.html",
    "verify": "check what scores.json claims",
    "compare": "compare runs in a table and a page",
    "quantize": "quantize the trained model of a folder",
    "push": "upload the model of a run to the Hugging Face Hub",
    "dashboard": "make a W&B workspace for a project's runs",
    "doctor": "tell what is installed and what this machine can do",
    "completion": "print a script that has the shell complete all this",
}
"""Every step, in a line."""

OF_A_RUN = ("shrink", "export", "measure", "card", "report", "verify")
"""Steps that take a run folder and little else."""

WITH_JSON = ("plan", "recipes", "export", "measure", "verify", "compare", "doctor")
"""Steps that print what scripts read, if asked."""

SHELLS = ("bash", "zsh", "fish")

_CODES = "exit codes: 0 done, 1 stopped (a line says why), 2 wrong arguments"
_OF_RECIPES = f"{_CODES} or recipe"
_STOPPED = ",\n143 stopped by a signal: the same command goes on"
_RUN = "runs/distil_cnn/20260101-120000"


class _Lines(argparse.HelpFormatter):
    """Wraps each line by itself, so that an example and exit codes begin lines of their own."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n".join(fill(line, width, indent) for line in text.splitlines())

    def add_argument(self, action: argparse.Action) -> None:
        """Make room for the longest step, whose indentation is not counted otherwise."""
        super().add_argument(action)
        self._action_max_length += 2 * isinstance(action, argparse._SubParsersAction)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    whole = argparse.ArgumentParser(
        prog="lighten",
        description="Networks made small and fast while they train.\nMore of each step: lighten STEP --help",
        epilog=f"example: lighten train recipe=smoke\n{_OF_RECIPES}{_STOPPED}",
        formatter_class=_Lines,
    )
    steps = whole.add_subparsers(dest="step", required=True, metavar="STEP")
    _add_recipes(steps)
    for name in OF_A_RUN:
        step = _add(steps, name, _RUN + (" --json" if name in WITH_JSON else ""))
        step.add_argument("run", type=Path, metavar="RUN", help="a run folder, runs/<recipe>/<id>")
        _add_json(step, name)
    _add_compare(steps)
    _add_quantize(steps)
    _add_others(steps)
    return whole


def _add_recipes(steps: Any) -> None:
    train = _add(
        steps, "train", "recipe=distil_cnn trainer.max_epochs=20", "then compresses, exports, measures and reports",
        codes=_OF_RECIPES + _STOPPED,
    )  # fmt: skip
    plan = _add(
        steps, "plan", "recipe=smoke compress.prune.amount=0.4", "its student as it is before training",
        codes=_OF_RECIPES,
    )  # fmt: skip
    for step in (train, plan):
        step.add_argument("recipe", metavar="recipe=NAME", help="a recipe of ./recipes; `lighten recipes` lists them")
        step.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="other settings, as compress.prune.amount=0")
        step.add_argument("-m", action="store_true", help="each combination of values with commas: seed=0,1,2")
    _add_json(plan, "plan")
    _add_json(_add(steps, "recipes", "--json", "with what each is for"), "recipes")


def _add_compare(steps: Any) -> None:
    compare = _add(
        steps, "compare", "runs/distil_cnn/* --sort bytes", "writes compare.html beside them, with the Pareto front"
    )
    compare.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, runs/<recipe>/<id>")
    compare.add_argument("--sort", default="accuracy", help="accuracy, kept, bytes, latency, faster, … (best first)")
    compare.add_argument("--out", type=Path, metavar="FILE", help="of the page (default: in their common folder)")
    _add_json(compare, "compare")


def _add_quantize(steps: Any) -> None:
    quantize = _add(
        steps, "quantize", "runs/prune_cnn/a/dense --mode static",
        "writes FOLDER-MODE/ and FOLDER-MODE.onnx beside it",
    )  # fmt: skip
    quantize.add_argument("folder", type=Path, metavar="FOLDER", help="a model folder, as runs/<recipe>/<id>/dense")
    quantize.add_argument("--mode", default=STATIC, help="static, dynamic, float16 or bfloat16 (default: static)")
    quantize.add_argument(
        "--ranges", default=POST_TRAINING_RANGES, help="of static: min_max, percentile, mse, entropy, …"
    )
    quantize.add_argument("--weight-bits", type=int, default=8, help="2 to 8, of static and dynamic")
    quantize.add_argument(
        "--calibration",
        type=int,
        default=QuantizeSettings.calibration,
        help="samples of the validation split, for static",
    )
    quantize.add_argument("--exclude", nargs="*", default=[], metavar="LAYER", help="names, patterns or types")


def _add_others(steps: Any) -> None:
    push = _add(
        steps, "push", f"{_RUN} me/tiny --private",
        "student/, its card and its files; the token is $HF_TOKEN or that of `hf auth login`",
    )  # fmt: skip
    push.add_argument("run", type=Path, metavar="RUN", help="a run folder, or a model folder")
    push.add_argument("repo", metavar="REPO", help="NAME/REPO on the hub; made where it is not there")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    dashboard = _add(
        steps, "dashboard", "--entity me --project lighten", "student against teacher, compression, speed, system"
    )
    dashboard.add_argument("--entity", required=True, help="the W&B user or team that the project belongs to")
    dashboard.add_argument("--project", default="lighten", help="the W&B project (default: lighten, as runs have it)")
    dashboard.add_argument("--dry-run", action="store_true", help="print what would be sent, as JSON, and send nothing")
    _add_json(_add(steps, "doctor", "--json", "packages, targets, threads, devices, the cluster"), "doctor")
    completion = _add(
        steps, "completion", "bash >> ~/.bashrc",
        "steps, options, recipes, run folders; zsh and fish likewise",
    )  # fmt: skip
    completion.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def _add(steps: Any, name: str, example: str, more: str = "", codes: str = _CODES) -> argparse.ArgumentParser:
    """Add a step.

    Args:
        steps: where to.
        name: a key of ``STEPS``, whose line it gets.
        example: arguments.
        more: what its own help says beside that line.
        codes: how it may end.
    """
    return steps.add_parser(
        name,
        help=STEPS[name],
        description=f"{STEPS[name]}: {more}" if more else STEPS[name],
        epilog=f"example: lighten {name} {example}\n{codes}",
        formatter_class=_Lines,
    )


def _add_json(step: argparse.ArgumentParser, name: str) -> None:
    if name in WITH_JSON:
        step.add_argument("--json", action="store_true", help="print JSON, and that alone, to standard output")
