"""What a detector loses and gains: ``python benchmarks/detection.py [--seeds 0 1 2] [--epochs N]``.

``recipe=distil_detector`` on composed scenes, in five ways of one student, at equal steps: in float by labels alone,
in float taught, taught and trained through int8, all three techniques, and those by labels alone. Teachers are trained
once a seed. Figures come from each run's ``scores.json``: the delivered file in onnxruntime on one thread, models
called in turn. A run that is there is not run again.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lighten.recipe.compose import compose_all
from lighten.run.pipeline import run
from lighten.utils.machine import processor

RECIPES = Path(__file__).parents[1] / "recipes"
WHOLE, FLOAT = ["compress.prune.amount=null"], ["compress.quantize.begin=null"]
LABELS = ["distil.soft_weight=0"]
WAYS = {
    "float, labels alone": [*WHOLE, *FLOAT, *LABELS],
    "float, taught": [*WHOLE, *FLOAT],
    "int8, taught": WHOLE,
    "pruned, int8, taught": [],
    "pruned, int8, labels alone": LABELS,
}
PROMISES = (
    ("pruning and int8 cost at most 2.0", "float, taught", "pruned, int8, taught", 2.0),
    ("int8 costs at most 0.8", "float, taught", "int8, taught", 0.8),
    ("a teacher gains at least 0.6", "float, taught", "float, labels alone", 0.6),
)
"""Points of mAP between two ways; the last is a gain."""


def scores_of(seed: int, way: str, runs: Path, words: Sequence[str]) -> dict[str, Any]:
    """Return the scores of a run, and its seconds, which is made where it is not there."""
    folder = runs / "distil_detector" / f"{seed}-{way.replace(', ', '-').replace(' ', '-')}"
    if not (folder / "scores.json").exists():
        given = ["recipe=distil_detector", f"runs={runs}", f"id={folder.name}", f"seed={seed}", *WAYS[way], *words]
        begun = time.perf_counter()
        run(compose_all(given, RECIPES)[0])
        (folder / "seconds.txt").write_text(f"{time.perf_counter() - begun:.0f}")
    found: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    seconds = folder / "seconds.txt"
    return {**found, "seconds": float(seconds.read_text()) if seconds.exists() else float("nan")}


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Return mean and standard deviation; of one value itself."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def main() -> None:
    """Run what is asked for and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", type=int, default=[*range(1, len(WAYS) + 1)], help="numbers, from 1 on")
    parser.add_argument("--epochs", type=int, help="of the student; the recipe's by default")
    parser.add_argument("--runs", type=Path, default=Path("runs/detection"))
    given = parser.parse_args()
    words = [f"trainer.max_epochs={given.epochs}"] if given.epochs else []
    ways = [list(WAYS)[number - 1] for number in given.ways]
    print(f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    found = {way: [scores_of(seed, way, given.runs, words) for seed in given.seeds] for way in ways}

    def points(way: str, model: str = "compressed", metric: str = "map") -> list[float]:
        return [100 * one["models"][model][metric] for one in found[way]]

    print(f"\n{len(given.seeds)} seeds; mAP in points; the teacher has {spread(points(ways[0], 'teacher'))}\n")
    print(
        "| | mAP | mAP at 0.5 | MACs | file | batch 1 | against float32 | seconds |\n|---|--:|--:|--:|--:|--:|--:|--:|"
    )
    for way in ways:
        models = [one["models"]["compressed"] for one in found[way]]
        first, gates = models[0], [one.get("gate", {}).get("speedup_batch_1", 1.0) for one in found[way]]
        cells = [
            way, spread(points(way)), spread(points(way, metric="map_50")), f"{first['macs'] / 1e6:.1f} M",
            f"{first['bytes'] / 1e3:.0f} kB",
            f"{statistics.median(m['latency_ms']['batch_1']['median'] for m in models):.2f} ms",
            spread(gates, 2), spread([one["seconds"] for one in found[way]], 0),
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |")
    print()
    for words_, one, other, limit in PROMISES:
        if one in found and other in found:
            gaps = [a - b for a, b in zip(points(one), points(other), strict=True)]
            held = statistics.mean(gaps) >= limit if "gains" in words_ else statistics.mean(gaps) <= limit
            print(f"{words_}: {spread(gaps, 2)}: {'held' if held else 'missed'}")


if __name__ == "__main__":
    main()
