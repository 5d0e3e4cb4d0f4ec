"""What strangers may send: ``python benchmarks/reliability.py hostile [--count N] [--seed N]``.

Files and recipes that want something executed, from ``tests/hostile``: each must be answered by one line and leave no
mark. Then N shipped recipes, changed at random, half of them with a changed word on the command line: each must be a
recipe, or be answered by one line, in under two seconds.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
MAX_SECONDS = 2.0


class Counted:
    """A plugin of pytest that counts what passed and names what did not."""

    def __init__(self) -> None:
        self.good, self.failures = 0, []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count one report."""
        if report.failed:
            self.failures.append(report.nodeid.rpartition("::")[2])
        elif report.when == "call":
            self.good += 1


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="reliability.py hostile")
    parser.add_argument("--count", type=int, default=2000, help="changed recipes (default: 2000)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    good, failures = _files_and_recipes()
    print("| hostile | asked | good | what failed |\n|---|---:|---:|---|", flush=True)
    print(f"| files and recipes | {good + len(failures)} | {good} | {'; '.join(failures[:3])} |", flush=True)
    answers, slowest, faults = _changed_recipes(arguments.count, arguments.seed)
    asked = sum(answers.values())
    told = "; ".join(f"{count} x {fault}" for fault, count in faults.most_common(3))
    print(f"| changed recipes | {asked} | {asked - sum(faults.values())} | {told} |")
    print(f"\nOf the changed recipes {answers['recipe']} are recipes still. Slowest answer: {slowest[0]:.2f} s, to")
    print(f"{slowest[1]!r:.300}")
    return int(bool(failures or faults or asked < arguments.count))


def _files_and_recipes() -> tuple[int, list[str]]:
    import pytest

    counted = Counted()
    wanted = [str(TESTS / "hostile" / name) for name in ("test_files.py", "test_recipes.py")]
    cases = ["-k", "test_a_hostile_file or test_a_hostile_recipe or test_hostile_words"]
    with contextlib.redirect_stdout(sys.stderr):
        pytest.main(["-q", "--durations=0", "--no-header", "--no-summary", *cases, *wanted], plugins=[counted])
    return counted.good, counted.failures


def _changed_recipes(count: int, seed: int) -> tuple[Counter[str], tuple[float, str], Counter[str]]:
    import hypothesis
    from hypothesis import strategies as st

    sys.path.insert(0, str(TESTS))
    from mutated_recipes import files, words

    answers: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    slowest = (0.0, "")
    with tempfile.TemporaryDirectory() as scratch:
        recipes = Path(scratch)
        sys.modules["lighten.run.pipeline"] = SimpleNamespace(run=lambda *given, **named: recipes)  # type: ignore[assignment]

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=count, deadline=None, database=None, phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )  # fmt: skip
        @hypothesis.given(text=files(), argv=st.lists(words(), max_size=1))
        def ask(text: str, argv: list[str]) -> None:
            nonlocal slowest
            (recipes / "x.yaml").write_text(text, errors="surrogatepass")
            begun = time.process_time()  # one thread that waits for nothing: its wall time, if no one else computes
            answer, fault = _answer(["recipe=x", *argv], recipes)
            taken = time.process_time() - begun
            slowest = max(slowest, (taken, f"{text}{' '.join(argv)}"))
            answers[answer] += 1
            if fault or taken > MAX_SECONDS:
                faults[fault or f"{taken:.1f} s"] += 1

        _answer(["recipe=smoke"], TESTS.parent / "recipes")  # imports what a check imports
        ask()
    return answers, slowest, faults


def _answer(argv: Sequence[str], recipes: Path) -> tuple[str, str | None]:
    """Return how words were answered, and what is wrong with that."""
    from train_py import train_py as launch

    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            code = launch(argv, recipes)
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return "traceback", f"{type(error).__name__} in {Path(last.filename).name} line {last.lineno}"
    lines = [line for line in err.getvalue().splitlines() if not line.startswith("warning: ")]
    if code == 0:
        return ("recipe", None) if not lines else ("recipe", "a recipe with an error line")
    good = code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and lines[0].isprintable()
    return "line", None if good else f"exit code {code} with {len(lines)} lines"
