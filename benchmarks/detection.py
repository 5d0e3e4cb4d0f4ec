"""What a detector loses and gains: ``python benchmarks/detection.py [--seeds 0 1 2] [--recipe distil_detector]``.

For each seed the recipe is run as it is and with parts of it left out, in the same number of steps; teachers are
trained once a seed. What is printed comes from each run's ``scores.json``: the delivered file on the test scenes, in
onnxruntime on one thread. A run that is there is not run again; further words are overrides of the recipe, such as
``trainer.max_epochs=1``.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lighten.recipe.compose import compose_all
from lighten.run.pipeline import run
from lighten.utils.machine import processor

RECIPES = Path(__file__).parents[1] / "recipes"
WHOLE, INT8 = ["compress.prune.amount=null"], ["compress.quantize.begin=null"]
ALONE = ["distil.losses.hint=0"]
KINDS = {
    "float": [*WHOLE, *INT8],
    "float, labels alone": [*WHOLE, *INT8, *ALONE],
    "int8": WHOLE,
    "pruned, float": INT8,
    "pruned, int8": [],
    "pruned, int8, labels alone": ALONE,
}
PAIRS = {
    "int8 against float": ("int8", "float"),
    "pruned against float": ("pruned, float", "float"),
    "pruned, int8 against float": ("pruned, int8", "float"),
    "a teacher, float": ("float", "float, labels alone"),
    "a teacher, pruned and int8": ("pruned, int8", "pruned, int8, labels alone"),
}


def scores_of(recipe: str, seed: int, kind: str, runs: Path, words: Sequence[str]) -> dict[str, Any]:
    """Return the scores of a run, which is made where it is not there."""
    folder = runs / recipe / f"{seed}-{kind.replace(', ', '-').replace(' ', '-')}"
    if not (folder / "scores.json").exists():
        made = [f"recipe={recipe}", f"runs={runs}", f"id={folder.name}", f"seed={seed}", *KINDS[kind], *words]
        begun = time.perf_counter()
        run(compose_all(made, RECIPES)[0])
        print(f"{folder}: {time.perf_counter() - begun:.0f} s", flush=True)
    found: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    return found


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Return mean and standard deviation; of one value itself."""
    mean = format(statistics.mean(values), form)
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2g}"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipe", default="distil_detector")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--runs", type=Path, default=Path("runs/detection"))
    parser.add_argument("words", nargs="*")
    given = parser.parse_args()
    found = {
        kind: [scores_of(given.recipe, seed, kind, given.runs, given.words) for seed in given.seeds]
        for kind in given.kinds
    }
    print(f"\n{processor()}, seeds {given.seeds}\n")
    print("| | mAP | mAP at 0.5 | MACs | file | batch 1 | batch 32 |\n|---|---:|---:|---:|---:|---:|---:|")
    rows = {"teacher": [each["models"]["teacher"] for each in next(iter(found.values()))]}
    rows |= {kind: [each["models"]["compressed"] for each in runs] for kind, runs in found.items()}
    for kind, models in rows.items():
        latency = [
            spread([each["latency_ms"][batch]["median"] for each in models], ".3g") for batch in ("batch_1", "batch_32")
        ]
        quality = [spread([100 * each[metric] for each in models]) for metric in ("map", "map_50")]
        size = [f"{models[0]['macs'] / 1e6:.1f} M", f"{models[0]['bytes'] / 1e3:.0f} kB"]
        print(f"| {kind} | {' | '.join([*quality, *size, *(f'{each} ms' for each in latency)])} |")
    print("\n| | mAP |\n|---|---:|")
    for name, (one, other) in PAIRS.items():
        if one in found and other in found:
            gaps = [
                100 * (a["models"]["compressed"]["map"] - b["models"]["compressed"]["map"])
                for a, b in zip(found[one], found[other], strict=True)
            ]
            print(f"| {name} | {spread(gaps, '+.2f')} |")


if __name__ == "__main__":
    main()
