"""``lighten plan``: print what recipes would prune, quantize and match; nothing is trained.

JSON: an array of :func:`plan_json`, one a recipe.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lighten.cli.output import print_json, stdout_aside
from lighten.cli.train import RECIPE_CODES, add_settings, composed, exit_code

if TYPE_CHECKING:
    from lighten.recipe.schema import Recipe


def add_parser(commands: Any) -> None:
    """Add the command."""
    add_settings(
        commands, "plan", "print what a recipe would cut and quantize; trains nothing", json=True, codes=RECIPE_CODES,
        more="for the student as it is before training", example="recipe=smoke compress.prune.amount=0.4",
    )  # fmt: skip


def run_words(argv: Sequence[str], recipes: Path) -> int:
    """Print what the recipes that ``argv`` asks for would do and return the exit code."""

    def work() -> None:
        jobs = composed([word for word in argv if word != "--json"], recipes)
        (print_plans_json if "--json" in argv else print_plans)(jobs)

    return exit_code(work)


def print_plans(recipes: Sequence["Recipe"]) -> None:
    """Print tables: layers that are matched, channels that are pruned, layers that are quantized.

    Raises:
        UserError: if a recipe does none of it, or what it asks for cannot be reached.
    """
    from rich.console import Console

    from lighten.quantization.table import format_rows
    from lighten.run.dry_run import matched_layers, plan, quantization_plan

    console = Console(width=None if sys.stdout.isatty() else 120)
    for recipe in recipes:
        matches = matched_layers(recipe)
        for loss, pairs in matches.items():
            width = max(len(match.student) for match in pairs)
            print(f"{loss}: student's layer, teacher's")
            print("\n".join(f"  {match.student:{width}}  {match.teacher}" for match in pairs))
        if _prunes(recipe) or not (_quantizes(recipe) or matches):
            planned, times, fit = plan(recipe)
            console.print(planned.rich(times))
            print(fit)
        if _quantizes(recipe):
            print(format_rows(quantization_plan(recipe)))


def print_plans_json(recipes: Sequence["Recipe"]) -> None:
    """Print a JSON array of :func:`plan_json`, and nothing else on standard output.

    Raises:
        UserError: as ``print_plans``.
    """
    with stdout_aside():
        plans = [plan_json(recipe) for recipe in recipes]
    print_json(plans)


def plan_json(recipe: "Recipe") -> dict[str, Any]:
    """Return what a recipe would do as plain values.

    Returns:
        ``recipe``, its name; ``match``, pairs of ``student`` and ``teacher`` layers by loss; ``prune``, what
        ``plan.json`` of a run holds, ``milliseconds`` of each layer before and after, and ``fit``, those of a step
        as ``whole`` and ``cut``, and the ``share`` of a fit's time that is left with cuts; and ``quantize``, a row of
        ``name``, ``kind``, ``weight_bits``, ``input``, ``output`` and ``note`` a layer, whose note begins with
        ``floating point`` where it stays so. ``null`` where it does not prune or not quantize through int8.

    Raises:
        UserError: as ``print_plans``.
    """
    from lighten.run.dry_run import matched_layers, plan, quantization_plan

    matches = {loss: [asdict(match) for match in pairs] for loss, pairs in matched_layers(recipe).items()}
    found: dict[str, Any] = {"recipe": recipe.name, "match": matches, "prune": None, "quantize": None}
    if _prunes(recipe) or not (_quantizes(recipe) or matches):
        planned, times, fit = plan(recipe)
        found["prune"] = json.loads(planned.to_json()) | {"milliseconds": times, "fit": asdict(fit)}
    if _quantizes(recipe):
        found["quantize"] = [asdict(row) for row in quantization_plan(recipe)]
    return found


def _prunes(recipe: "Recipe") -> bool:
    return recipe.compress.prune.amount is not None


def _quantizes(recipe: "Recipe") -> bool:
    return recipe.compress.quantize.begin is not None or recipe.compress.quantize.mode == "static"
