"""Other people's networks through every step: ``python benchmarks/foreign.py ['timm/*vit*' …] [--json PATH]``.

Each network of ``foreign_networks.py`` has a process of its own and a time limit. The steps, and what each must show:

* ``prune``: ``plan_pruning`` of half the channels; the masked network equals the cut one in float64, on other inputs
  than the plan's.
* ``float file``: ``export_onnx`` in float32; the file equals the network at several batch sizes.
* ``insert``: ``quantize_``; with fake-quantizers off the network equals itself, in eval mode, and in training mode
  from the same seed with its gradients and the statistics of its norms.
* ``int8``: ``calibrate_``; what fake-quantization changes is small, or not more than what rounding weights and inputs
  of layers does by itself, as hooks of this script do it.
* ``int8 file``: ``export_onnx``; the file equals the fake-quantized network.
* ``pruned int8``: the cut network through the last three.

After planning and after each export the user's network must be bit by bit, attribute by attribute what it was. A step
is "right", "refused" (``UserError``, one line), "slow", or a fault: "SILENTLY WRONG" or "CRASH". The exit code is the
number of faults, at most 1. What is in the JSON already is not asked again; ``--again`` asks what was not right.
"""

import argparse
import contextlib
import fnmatch
import json
import multiprocessing as mp
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import torch
from foreign_networks import import_libraries, names
from foreign_steps import STEPS, Survey, WrongError
from foreign_vision import NotBuiltError

from lighten import UserError

PATIENCE = 10
"""How many times its processor time a network may take by the clock, on a machine that others use too."""


def survey(name: str, pipe: Connection, steps: Sequence[str], limit: int) -> None:
    """Take one network through the steps; runs in a process of its own, which ends after so much processor time."""
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    warnings.simplefilter("ignore")
    if not os.environ.get("FOREIGN_LOUD"):
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1), os.dup2(silence, 2)
    torch.set_num_threads(1)

    def send(key: str, value: Any) -> None:
        pipe.send((key, value))

    try:
        asked = Survey(name, send)
    except NotBuiltError as error:
        send("not built", str(error))
        return
    needs = {"int8": "insert", "int8 file": "int8", "pruned int8": "prune"}
    outcomes: dict[str, str] = {}
    for step in steps:
        send("begin", step)
        begun = time.process_time()
        need = needs.get(step)
        if need and not outcomes.get(need, "").startswith("right"):
            outcomes[step] = f"not reached: {need}"
        else:
            outcomes[step], trace = _outcome(getattr(asked, step.replace(" ", "_")))
            if trace:
                send("trace", (step, trace))
        send("outcome", (step, outcomes[step], round(time.process_time() - begun, 1)))


def _outcome(step: Callable[[], str]) -> tuple[str, str | None]:
    try:
        return step(), None
    except WrongError as error:
        return f"SILENTLY WRONG: {error}", None
    except UserError as error:
        lines = str(error).splitlines()
        if len(lines) == 1:
            return f"refused: {lines[0][:300]}", None
        return f"CRASH: a message of {len(lines)} lines: {lines[0][:200]}", traceback.format_exc()
    except BaseException as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return f"CRASH: {type(error).__name__}: {first[:200]}", traceback.format_exc()


def ask(name: str, steps: Sequence[str], limit: int) -> dict[str, Any]:
    """Return what became of one network: its steps, and what it is."""
    context = mp.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=survey, args=(name, theirs, steps, limit))
    found: dict[str, Any] = {"steps": {}, "times": {}, "traces": {}}
    step, ended = "build", "CRASH: the process died"
    process.start()
    theirs.close()
    with contextlib.suppress(EOFError):
        while True:
            if not ours.poll(PATIENCE * limit):
                ended = "slow: waits"
                break
            key, value = ours.recv()
            if key == "begin":
                step = value
            elif key == "outcome":
                found["steps"][value[0]], found["times"][value[0]] = value[1:]
                step = None
            elif key == "trace":
                found["traces"][value[0]] = value[1]
            else:
                found[key] = value
    process.kill() if ended.startswith("slow") else process.join()
    process.join()
    if step and "not built" not in found:
        found["steps"][step] = f"slow: {limit} s" if process.exitcode == -signal.SIGXCPU else ended
    return found


def faults(found: Mapping[str, Any]) -> list[str]:
    """Return the steps that are faults."""
    return [s for s, outcome in found.get("steps", {}).items() if outcome.startswith(("SILENTLY", "CRASH"))]


def print_table(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Print outcomes by library and step, then what is not right with the networks that it happened to."""
    built = {name: found for name, found in results.items() if "network" in found}
    print(f"{len(built)} networks, {len(results) - len(built)} not built\n")
    kinds = ("right", "refused", "slow", "not reached", "SILENTLY WRONG", "CRASH")
    print(f"| library | step | {' | '.join(kinds)} |\n|---|---|{'---:|' * len(kinds)}")
    for library in sorted({name.partition("/")[0] for name in built}):
        for step in STEPS:
            mine = [f["steps"].get(step, "not reached") for n, f in built.items() if n.startswith(f"{library}/")]
            counts = Counter(outcome.partition(":")[0] for outcome in mine)
            print(f"| {library} | {step} | {' | '.join(str(counts[kind]) for kind in kinds)} |")
    by_reason: dict[str, list[str]] = {}
    for name, found in built.items():
        for step, outcome in found["steps"].items():
            if not outcome.startswith(("right", "not reached")):
                by_reason.setdefault(f"{step}: {outcome}", []).append(name)
    print()
    for reason, whom in sorted(by_reason.items()):
        print(f"* {reason}  [{', '.join(whom)}]")


def main(argv: Iterable[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", help="networks, such as timm/resnet18 or 'timm/*vit*' (default: all)")
    parser.add_argument("--json", type=Path, help="where results are kept and gone on from")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time (default: 1)")
    parser.add_argument("--limit", type=int, default=120, help="processor seconds for one network (default: 120)")
    parser.add_argument("--steps", type=lambda text: text.split(","), default=STEPS, help="some alone, with commas")
    parser.add_argument("--again", metavar="TEXT", help="ask those again of which an outcome holds this text")
    parser.add_argument("--table", action="store_true", help="print the table of what is in the JSON, run nothing")
    asked = parser.parse_args(list(argv))
    results = json.loads(asked.json.read_text()) if asked.json and asked.json.exists() else {}
    if not asked.table:
        _ask_all(_wanted(asked, results), asked, results)
    print_table(results)
    return int(any(faults(found) for found in results.values()))


def _wanted(asked: argparse.Namespace, results: Mapping[str, Any]) -> list[str]:
    patterns = asked.patterns or ["*"]
    known = names()
    wanted = list(
        dict.fromkeys(n for p in patterns for n in ([p] if not set(p) & set("*?[") else fnmatch.filter(known, p)))
    )
    if asked.again:
        return [n for n in wanted if n in results and asked.again in json.dumps(results[n].get("steps", {}))]
    return [name for name in wanted if name not in results]


def _ask_all(wanted: list[str], asked: argparse.Namespace, results: dict[str, Any]) -> None:
    import_libraries()
    torch.set_num_threads(1)
    with ThreadPool(asked.jobs) as pool:
        for name, found in pool.imap_unordered(lambda n: (n, ask(n, asked.steps, asked.limit)), wanted):
            results[name] = found
            steps = "; ".join(f"{s} {o[:90]}" for s, o in found["steps"].items()) or found.get("not built", "")
            print(f"{name} ({sum(found['times'].values()):.0f} s): {steps}", flush=True)
            if asked.json:
                asked.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
