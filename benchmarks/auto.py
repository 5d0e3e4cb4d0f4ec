"""Compression without settings against its promises: ``python benchmarks/auto.py [search] [grid] [peers] [--seeds 5]``.

Each network is trained once a seed and kept in ``--home``; only then time counts.

- ``search``: ``compress(max_drop=0.01)``. A row a network and seed: drop on the confirmation split with its bound,
  whether the need is broken there, times smaller and faster than the float original (onnxruntime, one thread, in turn),
  seconds to the first valid model and of all, share that is not fine-tuning, error of the predicted latency and
  Spearman's rank correlation of the predicted drop. Then how often the need was broken, and which promises hold.
- ``grid``: at the training steps of the search, by hand: three strengths × two criteria, uniform, through int8, taught
  by the original; the best is chosen on the same select split, and confirmed on the same confirmation split.
- ``peers``: NNCF's accuracy control, neural-compressor's autotune, ModelOpt's auto_quantize (``auto_peers.py``).

``--networks smoke --seeds 1 --budget "1 epochs"`` shows in a minute that all of it runs.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from auto_networks import NETWORKS, trained
from auto_peers import CALIBRATION, PEERS, Given, compressed_by
from torch import nn

from lighten import DistillationModule, Prune, Quantize, compress, export_onnx, shrink
from lighten.delivery.measure.pair import measure_pair
from lighten.search.confirm import confirm_drop
from lighten.search.splits import Splits, splits_of
from lighten.tasks import task_of
from lighten.training.fit import make_trainer
from lighten.training.optimizer import OptimizerSettings
from lighten.utils.clone import clone
from lighten.utils.inputs import example_of
from lighten.utils.machine import cores, processor
from lighten.utils.ranks import spearman

PARTS = ("search", "grid", "peers")
STRENGTHS, CRITERIA = (0.3, 0.5, 0.7), ("fpgm", "magnitude")
GRID_LR = 0.001
"""Of AdamW, which fine-tunes all these networks."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[*PARTS], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--networks", nargs="+", default=[n for n in NETWORKS if n != "smoke"], choices=NETWORKS)
    parser.add_argument("--seeds", type=int, default=5, help="of each; MiniLM has one")
    parser.add_argument("--budget", default="20min", help="of a search")
    parser.add_argument("--max-drop", type=float, default=0.01)
    parser.add_argument("--threads", type=int, default=cores(), help="of training")
    parser.add_argument("--home", type=Path, default=Path("runs/benchmark_auto"), help="of networks, searches, rows")
    given = parser.parse_args()
    if wrong := set(given.parts) - set(PARTS):
        parser.error(f"{', '.join(wrong)}: expected {', '.join(PARTS)}")
    warnings.simplefilter("ignore")
    torch.set_num_threads(given.threads)
    given.home.mkdir(parents=True, exist_ok=True)
    print(f"{processor()}, {given.threads} threads, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    rows = []
    for name in given.networks:
        for seed in range(1 if name == "minilm" else given.seeds):
            for row in rows_of(name, seed, given):
                rows.append(row)
                print(" | ".join(f"{key} {shown(value)}" for key, value in row.items()), flush=True)
                (given.home / "rows.json").write_text(json.dumps(rows, indent=2))
    summarise([row for row in rows if row["part"] == "search"])


def rows_of(name: str, seed: int, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each thing that is done to one network."""
    model, data = trained(name, seed, given.home)
    splits, task = splits_of(data, seed=seed), task_of(data.task)
    folder = given.home / f"{name}-{seed}-search"
    original = given.home / f"{name}-{seed}.onnx"
    if not original.exists():
        export_onnx(model, example_of(data.input_shape), original)
    about = {"network": name, "seed": seed}
    if "search" in given.parts or "grid" in given.parts:
        begun, busy, started = time.perf_counter(), time.process_time(), time.time()
        result = compress(
            model, data, max_drop=given.max_drop, budget=given.budget, folder=folder, seed=seed, on_progress=quiet
        )
        seconds, busy = time.perf_counter() - begun, time.process_time() - busy
        told = json.loads((folder / "search.json").read_text())
        if "search" in given.parts:
            found = judged(original, result.path, splits, task, given.max_drop)
            made = next(t["number"] for t in told["trials"] if t["state"] == "complete")
            first = (folder / f"trials/{made}/trial.json").stat().st_mtime - started  # below 0 of a search done before
            yield about | {
                "part": "search",
                "met": result.met,
                **found,
                **cost(told, seconds, first),
                "processor s": busy,
            }
        if "grid" in given.parts:
            yield about | {"part": "grid", **grid(model, data, original, splits, task, told, given, seed)}
    if "peers" in given.parts:
        for peer in PEERS:
            yield about | {"part": peer, **by_peer(peer, model, data, splits, task, given)}


def judged(original: Any, file: Any, splits: Splits, task: Any, max_drop: float) -> dict[str, Any]:
    """Return what a file loses on the confirmation split, and its gains."""
    one, other, answers = measure_pair(task, original, file, splits.confirm, batch_sizes=[1])
    found = confirm_drop(task, answers.labels, answers.original, answers.compressed)
    before, after = (scores["latency_ms"]["batch_1"]["median"] for scores in (one, other))
    return {
        "drop": found.drop, "bound": found.bound, "broken": found.drop > max_drop,
        "times smaller": one["bytes"] / other["bytes"], "times faster": before / after, "ms": after,
    }  # fmt: skip


def cost(told: Mapping[str, Any], seconds: float, first: float) -> dict[str, Any]:
    """Return what a search took, how long its first model, and how good its predictions were."""
    spent, done = told["seconds"], [t for t in told["trials"] if t["state"] == "complete"]
    whole = sum(spent.values())
    predicted = [t for t in done if (t.get("predicted") or {}).get("drop") is not None]
    front = [t for t in predicted if t["number"] in told["frontier"]]
    off = [abs(t["predicted"]["latency_ms"] / t["measured"]["latency_ms"] - 1) for t in front]
    rank = spearman([t["predicted"]["drop"] for t in predicted], [t["measured"]["drop"] for t in predicted])
    return {
        "first model s": first, "whole s": max(seconds, told["elapsed"]), "not fine-tuning": 1 - spent["fit"] / whole,
        "trials": len(told["trials"]), "latency off": statistics.median(off) if off else None, "Spearman": rank,
    }  # fmt: skip


def grid(
    model: nn.Module, data: Any, original: Path, splits: Splits, task: Any, told: Mapping[str, Any],
    given: argparse.Namespace, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Return the best of a hand grid, at the training steps of the search in all."""
    epochs = sum(trial["epochs"] or 0.0 for trial in told["trials"]) / (len(STRENGTHS) * len(CRITERIA))
    steps = max(4, round(epochs * len(splits.train)))
    tried = []
    for amount, score in itertools.product(STRENGTHS, CRITERIA):
        with tempfile.TemporaryDirectory(dir=given.home) as place:
            file = given.home / f"grid-{amount}-{score}.onnx"
            export_onnx(tuned(model, data, amount, score, steps, Path(place), seed), example_of(data.input_shape), file)
        _, other, answers = measure_pair(task, original, file, splits.select, batch_sizes=[1])
        drop = confirm_drop(task, answers.labels, answers.original, answers.compressed).drop
        tried.append((other["latency_ms"]["batch_1"]["median"], drop, file, f"{amount} {score}"))
    fit = [one for one in tried if one[1] <= given.max_drop]
    best = min(fit) if fit else min(tried, key=lambda one: one[1])
    found = judged(original, best[2], splits, task, given.max_drop)
    return {"best": best[3], "fits on select": bool(fit), "steps each": steps, **found}


def tuned(model: nn.Module, data: Any, amount: float, score: str, steps: int, place: Path, seed: int) -> nn.Module:
    """Return a network that was pruned uniformly and trained through int8, with the original as its teacher."""
    module = DistillationModule(
        clone(model).train(), clone(model), task=task_of(data.task), soft_weight=0.9, num_classes=data.num_classes,
        optimizer=OptimizerSettings(name="adamw", lr=GRID_LR),
    )  # fmt: skip
    prune = Prune(amount, score=score, scope="uniform", target="macs", begin=0.0, end=0.5, module="student")
    callbacks = [prune, Quantize(begin=0.6, module="student")]
    settings = {"max_epochs": -1, "max_steps": steps, "enable_progress_bar": False, "gradient_clip_val": 1.0}
    trainer = make_trainer(folder=place, stage="grid", settings=settings, callbacks=callbacks, monitor=None, seed=seed)
    with contextlib.redirect_stdout(None):  # the plan is printed
        trainer.fit(module, data)
    return shrink(module.student, prune.plan).eval()


def by_peer(
    name: str, model: nn.Module, data: Any, splits: Splits, task: Any, given: argparse.Namespace
) -> dict[str, Any]:
    """Return what another library's search comes to, or why it comes to nothing."""
    if not isinstance(data.input_shape, tuple) or len(data.input_shape) != 3:
        return {"failed": "set up for images here"}
    inputs = [batch[0] for batch in splits.guide][: max(1, CALIBRATION // splits.guide.batch_size)]
    with tempfile.TemporaryDirectory(dir=given.home) as place:
        done = compressed_by(
            name, Given(model, inputs[0][:2], inputs, list(splits.guide), task, given.max_drop, Path(place))
        )
        if isinstance(done, str):
            return {"failed": done}
        compressed, original, seconds = done
        return {**judged(original, compressed, splits, task, given.max_drop), "whole s": seconds}


def summarise(rows: list[dict[str, Any]]) -> None:
    """Print which promises hold."""
    if not rows:
        return
    print(f"need broken on the confirmation split: {sum(row['broken'] for row in rows)} of {len(rows)}")
    print(f"first valid model: at most {max(row['first model s'] for row in rows):.0f} s")
    print(f"whole search: at most {max(row['whole s'] for row in rows) / 60:.1f} min")
    print(f"not fine-tuning: at most {max(row['not fine-tuning'] for row in rows):.0%} of the time")
    for name in dict.fromkeys(row["network"] for row in rows):
        own, case = [row for row in rows if row["network"] == name], NETWORKS[name]
        smaller, faster = (min(row[f"times {key}"] for row in own) for key in ("smaller", "faster"))
        holds = smaller >= case.smaller and faster >= case.faster
        asked = f"asked {case.smaller:g}× and {case.faster:g}×"
        print(f"{name}: {smaller:.1f}× smaller, {faster:.1f}× faster at least; {asked}: {'holds' if holds else 'no'}")


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def quiet(said: str) -> None:
    """Say nothing."""


if __name__ == "__main__":
    main()
