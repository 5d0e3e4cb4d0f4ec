"""What every task comes to: ``python benchmarks/tasks.py [table segmentation image] [--seeds 0 1 2]``.

For each seed the recipe is run as it is, and once more on the labels alone (``distil.soft_weight=0``) in the same
number of steps; teachers are trained once a seed. What is printed comes from each run's ``scores.json``: the int8 file
against its teacher, in onnxruntime on one thread, models called in turn. ``table`` also fits scikit-learn's linear
regression and gradient boosting on the same training rows. A run that is there is not run again.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lighten import build_data
from lighten.recipe.compose import compose_all
from lighten.run.pipeline import run
from lighten.utils.machine import processor

RECIPES = Path(__file__).parents[1] / "recipes"
KINDS = {"distilled": [], "labels alone": ["distil.soft_weight=0"]}


def scores_of(task: str, seed: int, kind: str, runs: Path) -> dict[str, Any]:
    """Return the scores of a run, which is made where it is not there."""
    name = f"distil_{task}"
    folder = runs / name / f"{seed}-{kind.replace(' ', '-')}"
    if not (folder / "scores.json").exists():
        words = [f"recipe={name}", f"runs={runs}", f"id={folder.name}", f"seed={seed}", *KINDS[kind]]
        begun = time.perf_counter()
        run(compose_all(words, RECIPES)[0])
        (folder / "seconds.txt").write_text(f"{time.perf_counter() - begun:.0f}")
    found: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    return found


def spread(values: Sequence[float], digits: int = 4) -> str:
    """Return mean and standard deviation; of one value itself."""
    if len(values) == 1:
        return f"{values[0]:.{digits}g}"
    return f"{statistics.mean(values):.{digits}g} ± {statistics.stdev(values):.2g}"


def table_of(task: str, seeds: Sequence[int], runs: Path) -> None:
    """Print a task's table."""
    found = {kind: [scores_of(task, seed, kind, runs) for seed in seeds] for kind in KINDS}
    metric = found["distilled"][0]["task"]["metric"]
    others = [name for name in found["distilled"][0]["task"]["metrics"] if name != metric]

    def values(kind: str, *keys: str) -> list[float]:
        taken = found[kind]
        for key in keys:
            taken = [each[key] for each in taken]
        return [float(v) for v in taken]  # type: ignore[arg-type]

    print(f"\n## {task}: {len(seeds)} seeds\n")
    print("| | teacher | int8 file | labels alone, int8 file |\n|---|---:|---:|---:|")
    for name in (metric, *others):
        cells = [
            spread(values("distilled", "models", "teacher", name)),
            *(spread(values(kind, "models", "compressed", name)) for kind in KINDS),
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    print("\n| kept | smaller | fewer MACs | faster, batch 1 | faster, batch 32 | gain of distillation |")
    print("|---:|---:|---:|---:|---:|---:|")
    ratios = ("retention", "size_ratio", "mac_ratio", "speedup_batch_1", "speedup_batch_32")
    ours, theirs = (values(kind, "models", "compressed", metric) for kind in KINDS)
    gains = [a - b for a, b in zip(ours, theirs, strict=True)]
    cells = [spread(values("distilled", "comparison", ratio)) for ratio in ratios]
    print(f"| {' | '.join(cells)} | {spread(gains, 2)} in {metric} |")


def peers() -> None:
    """Print what scikit-learn makes of the same rows."""
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.linear_model import LinearRegression
    from sklearn.metrics import mean_absolute_error, r2_score

    data: Any = build_data("diamonds")
    data.prepare_data()
    data.setup("fit")
    sizes = data.input_shape["categories"]

    def rows(part: Any, *, hot: bool) -> tuple[np.ndarray, np.ndarray]:
        numbers, kinds = part.inputs["numbers"].numpy(), part.inputs["categories"].numpy()
        coded = [np.eye(size)[kinds[:, i]] for i, size in enumerate(sizes)] if hot else [kinds]
        return np.concatenate([numbers, *coded], axis=1), data.task.restored(part.labels)[:, 0].numpy()

    print("\n| scikit-learn, the same rows | r2 | mae |\n|---|---:|---:|")
    for name, model, hot in (
        ("linear regression, categories one-hot", LinearRegression(), True),
        ("gradient boosting (HistGradientBoosting)", HistGradientBoostingRegressor(random_state=0), False),
    ):
        model.fit(*rows(data.train_set, hot=hot))
        inputs, true = rows(data.test_set, hot=hot)
        said = model.predict(inputs)
        print(f"| {name} | {r2_score(true, said):.4g} | {mean_absolute_error(true, said):.4g} |")


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=["table", "segmentation", "image"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/tasks"))
    arguments = parser.parse_args()
    print(f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for task in arguments.tasks:
        table_of(task, arguments.seeds, arguments.runs)
        if task == "table":
            peers()


if __name__ == "__main__":
    main()
