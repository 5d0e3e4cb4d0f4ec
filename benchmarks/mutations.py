"""Do the tests notice: ``python benchmarks/mutations.py [--count 200] [--seed 0] [--rooms masks …] [--json PATH]``.

Breaks one line of the sources at a time, drawn by the seed from ``ROOMS``, in a temporary copy of the tree, and runs
the tests that belong to the file: those of its name first, then those that its room names, then those that import it,
then the folder's others. The first that turns red ends it. A group that is not green before anything is broken is
named and left out; else that tells how long it takes, and it may take ``--patience`` times that.

A breakage is ``killed`` (a test turns red, named), ``hangs`` (a group did not end), or it ``survived``. Results are in
the JSON file after each, and a second call goes on from there. ``--groups name`` asks the tests of the name alone,
which is quick; what is green then is ``not noticed``, and a later call with more groups asks those.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing as mp
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from mutation_sites import Site, drawn

ROOT = Path(__file__).parent.parent
SOURCE = Path("src/lighten")
COPIED = ("src", "tests", "recipes", "docs", "benchmarks", "scripts", "slurm", ".ci")
SLOW = ("slurm", "cuda", "distributed", "hostile")
"""Folders of tests that are asked only where a room names them."""
GROUPS = ("name", "room", "imports", "folder")
HEAVY = ("torch", "torch.export", "torch._dynamo", "torch.distributed", "lightning", "torchmetrics")
"""What tests import, imported once: each run of tests is a copy of this process."""
EARLY = ("-W", "ignore:Module already imported so cannot be rewritten")
"""For pytest, whose plugins may be among them."""
LEAST = 60.0
"""Seconds that every group of tests may take."""


@dataclass(frozen=True)
class Room:
    """Files under ``src/lighten`` in which lines are broken, and further tests that belong to them all."""

    files: Sequence[str]
    tests: Sequence[str] = ()


ROOMS = {
    "masks": Room(
        ["pruning/mask.py", "pruning/updates.py", "pruning/callback.py", "pruning/pruner.py"],
        ["tests/pruning/test_zoo.py", "tests/test_composition.py"],
    ),
    "scales": Room(
        ["quantization/fake_quant.py", "quantization/observe.py", "quantization/parameters.py", "quantization/lsq.py",
         "quantization/activation_quantizers.py", "quantization/quantizer.py", "quantization/histogram.py"],
        ["tests/quantization/test_meaning.py", "tests/quantization/test_calls.py"],
    ),
    "T squared": Room(
        ["distillation/loss.py", "distillation/terms.py", "distillation/step.py", "tasks/losses.py"],
        ["tests/tasks/test_losses.py", "tests/distillation/test_loss.py"],
    ),
    "rank reduction": Room(
        ["distillation/distributed.py", "pruning/agreement.py", "training/peers.py", "training/finite.py"],
        ["tests/distributed/test_compression_ddp.py", "tests/distributed/test_distillation_ddp.py"],
    ),
    "manifests": Room(["training/checkpoint.py", "training/reference.py", "training/lineage.py"]),
    "allocation": Room(
        ["pruning/allocate.py", "pruning/widths.py", "pruning/sensitivity.py", "pruning/worthwhile.py",
         "pruning/proportions.py"],
        ["tests/pruning/test_planner.py", "tests/pruning/test_pruner.py"],
    ),
    "tasks": Room(
        ["tasks/classes.py", "tasks/regression.py", "tasks/multilabel.py", "tasks/segmentation.py", "tasks/task.py",
         "tasks/scorer.py", "tasks/losses.py", "tasks/numbers.py"],
        ["tests/tasks"],
    ),
    "live cuts": Room(
        ["pruning/live.py", "pruning/live_cut.py", "utils/optimizer_state.py"],
        ["tests/pruning/test_live_callback.py"],
    ),
}  # fmt: skip
"""What is broken, by what would go wrong."""


def main(argv: Sequence[str]) -> int:
    """Break, test, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=list(ROOMS), metavar="ROOM", help=", ".join(ROOMS))
    parser.add_argument("--files", nargs="+", default=[""], help="parts of paths: no other files are broken")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/mutations.json"), help="gone on from")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after so long")
    parser.add_argument("--patience", type=float, default=5.0, help="times what a group of tests takes unbroken")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS, help="of tests that are asked")
    parser.add_argument("--list", action="store_true", help="print what would be broken, and run nothing")
    asked = parser.parse_args(argv)
    rooms = {
        name: [SOURCE / file for file in ROOMS[name].files if any(part in file for part in asked.files)]
        for name in asked.rooms
    }
    sites = drawn(rooms, ROOT, asked.count, asked.seed)
    if asked.list:
        print("\n".join(f"{site.room}: {site.key}" for site in sites))
        return 0
    results: dict[str, Any] = json.loads(asked.json.read_text()) if asked.json.exists() else {}
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the copy goes, and who tests in it
    for name in HEAVY:
        importlib.import_module(name)
    with Tree() as tree:
        for site in sites:
            before = results.get(site.key, {"kind": "not noticed", "asked": []})
            groups = {kind: tests for kind, tests in groups_of(site, tree.root).items() if kind not in before["asked"]}
            if before["kind"] != "not noticed" or not set(groups) & set(asked.groups):
                continue
            if time.perf_counter() - begun > 60 * asked.minutes:
                break
            found = judge(site, tree, groups, asked)
            results[site.key] = {**asdict(site), **found, "asked": before["asked"] + found["asked"]}
            asked.json.write_text(json.dumps(results, indent=1))
            print(f"{results[site.key]['kind']}: {site.key} ({results[site.key]['words']})", flush=True)
    print(report([results[site.key] for site in sites if site.key in results], len(sites)))
    return 0


class Tree:
    """A copy of the sources and tests, in which one line is broken at a time."""

    def __enter__(self) -> "Tree":
        self._stack = contextlib.ExitStack()
        self.root = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="mutations-")))
        leave = shutil.ignore_patterns("__pycache__", "*.pyc")
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, self.root / name, ignore=leave)
        for path in ROOT.iterdir():
            if path.is_file():
                shutil.copy2(path, self.root / path.name)
        self.seconds: dict[tuple[str, ...], float | None] = {}
        code = "import lighten; print(lighten.__file__)"
        found = subprocess.run(
            [sys.executable, "-c", code], env=self._environment(), capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        assert Path(found).is_relative_to(self.root), f"another lighten is imported: {found}"
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def broken(self, site: Site) -> Any:
        """Break the line, and mend it again."""
        path = self.root / site.path
        source = path.read_text(encoding="utf-8")
        path.write_text(site.broken(source), encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(source, encoding="utf-8")

    def unbroken(self, tests: tuple[str, ...]) -> float | None:
        """Return how many seconds these tests take; ``None`` where they are not green to begin with."""
        if tests not in self.seconds:
            begun = time.perf_counter()
            kind, words = self.run(tests, None)
            self.seconds[tests] = time.perf_counter() - begun if kind == "green" else None
            if kind != "green":
                print(f"left out, as they are red before anything is broken: {' '.join(tests)}: {words}", flush=True)
        return self.seconds[tests]

    def run(self, tests: tuple[str, ...], limit: float | None) -> tuple[str, str]:
        """Return ``green``, ``red`` with the first test that fails, or ``hangs``."""
        said = self.root / "said.txt"
        process = mp.get_context("fork").Process(target=self._pytest, args=(tests, said))
        process.start()
        try:
            process.join(limit)
            if process.is_alive():
                return "hangs", f"not ended after {limit:.0f} s"
        finally:
            if process.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # and what a test has started
                process.kill()
                process.join()
        if process.exitcode in (0, 5):  # 5: nothing to run
            return "green", ""
        text = said.read_text(errors="replace") if said.exists() else ""
        return "red", next(iter(re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)), text.strip()[-200:])

    def _pytest(self, tests: tuple[str, ...], said: Path) -> None:
        """Run in a copy of this process, which has imported what takes long, and nothing of lighten."""
        assert "lighten" not in sys.modules
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        os.chdir(self.root)
        os.environ.update(self._environment())
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(self.root / "src"))
        log = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = int(pytest.main(["-x", "-q", "--durations=0", "-p", "no:cacheprovider", *EARLY, *tests]))
        sys.stdout.flush()
        os._exit(code)

    def _environment(self) -> dict[str, str]:
        # no compiled files: a broken line of the same length, within one second, would pass for the old one
        return {**os.environ, "PYTHONPATH": str(self.root / "src"), "PYTHONDONTWRITEBYTECODE": "1"}


def groups_of(site: Site, root: Path) -> dict[str, tuple[str, ...]]:
    """Return the tests that belong to a file, nearest first: ``name``, ``room``, ``imports``, ``folder``."""
    own = Path(site.path).relative_to(SOURCE)
    folder = Path("tests") / own.parent
    here = sorted(str(path.relative_to(root)) for path in (root / folder).glob("test_*.py"))
    name = tuple(path for path in here if re.fullmatch(rf"test_{own.stem}(_.*)?\.py", Path(path).name))
    room = tuple(test for test in ROOMS[site.room].tests if test not in name)
    module = ".".join(("lighten", *own.with_suffix("").parts))
    near = [path for path in sorted((root / "tests").rglob("test_*.py")) if path.parent.name not in SLOW]
    imports = [str(path.relative_to(root)) for path in near if re.search(rf"{module}\b", path.read_text())]
    users = tuple(path for path in imports if path not in {*name, *room})
    rest = tuple(path for path in here if path not in {*name, *room, *users})
    groups = {"name": name, "room": room, "imports": users, "folder": rest}
    return {kind: tests for kind, tests in groups.items() if tests}


def judge(site: Site, tree: Tree, groups: Mapping[str, tuple[str, ...]], asked: argparse.Namespace) -> dict[str, Any]:
    """Return what becomes of a breakage, and which groups of tests were asked."""
    green: list[str] = []
    for kind, tests in groups.items():
        if kind not in asked.groups or (seconds := tree.unbroken(tests)) is None:
            continue
        with tree.broken(site):
            found, words = tree.run(tests, max(LEAST, asked.patience * seconds))
        if found != "green":
            return {"kind": "killed" if found == "red" else found, "words": words, "by": kind, "asked": [*green, kind]}
        green.append(kind)
    kind = "survived" if set(groups) == set(green) else "not noticed"
    return {"kind": kind, "words": f"{', '.join(green)}: green", "by": "", "asked": green}


def report(results: Sequence[Mapping[str, Any]], count: int) -> str:
    """Return counts by room, then every breakage that no test noticed, as Markdown."""
    kinds = ("killed", "hangs", "survived", "not noticed")
    lines = [
        f"\n{len(results)} of {count} breakages asked\n",
        f"| room | asked | {' | '.join(kinds)} | turned red |", f"|---|---:|{'---:|' * (len(kinds) + 1)}",
    ]  # fmt: skip
    for room in (*ROOMS, "all"):
        mine = [found for found in results if room in (found["room"], "all")]
        if mine:
            counts = Counter(found["kind"] for found in mine)
            red = (counts["killed"] + counts["hangs"]) / len(mine)
            lines.append(f"| {room} | {len(mine)} | {' | '.join(str(counts[kind]) for kind in kinds)} | {red:.0%} |")
    for found in results:
        if found["kind"] in ("survived", "not noticed", "hangs"):
            lines += [
                f"\n{found['kind']}: {found['path']}:{found['line']}, {found['operator']}",
                f"    - {found['before'].strip()}", f"    + {found['after'].strip()}",
            ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
