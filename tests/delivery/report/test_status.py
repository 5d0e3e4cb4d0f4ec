"""A real run that fails, and its report; what is told of other folders is tested in tests/delivery/test_report.py."""

import json
import re
from pathlib import Path

from train_py import train_py as train

from lighten.cli.main import main as cli

RECIPES = Path(__file__).parents[3] / "recipes"
SETTINGS = [
    "recipe=smoke",
    "id=one",
    "optimizer.lr=1.0e+18",
    "distil.preflight=false",
    "trainer.enable_progress_bar=false",
]
BROKEN = re.compile(r"(loss|gradient of [\w.]+) is (nan|inf) at step")
"""Which of the two it is that breaks first depends on how a processor adds up."""


def test_a_run_by_recipe_that_fails_says_where_in_its_report(tmp_path, capsys) -> None:
    assert train([*SETTINGS, f"runs={tmp_path}"], RECIPES) == 1
    run = tmp_path / "smoke" / "one"
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert json.loads((run / "failure.json").read_text())["error"] == told.removeprefix("error: ")
    assert BROKEN.search(told)
    assert cli(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    step = json.loads((run / "history.jsonl").read_text().splitlines()[-1])["step"]
    assert f"<h1>Failed in the fit, after step {step} of 16.</h1>" in page
    assert re.search(rf"What stopped it: .*{BROKEN.pattern}", page)
    assert "Training loss" in page, "what there was is drawn"
