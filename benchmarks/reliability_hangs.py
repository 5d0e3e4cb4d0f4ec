"""Fits of two processes that are harmed: ``python benchmarks/reliability.py hangs [LAUNCHER …] [--count N]``.

One rank or both are killed, raise, get SIGTERM or SIGUSR1, or are stopped by SIGSTOP, with both in step and with one a
second behind, under Lightning's own launcher, torchrun, and a Slurm of two nodes on this machine. In each of these
fits all processes must have ended within 30 seconds of what was to be noticed, with none left over; the last line of
stderr must be the cause; and the exit code must be 143 where a signal asked the run to stop (torchrun's own is 1),
the job queued again and done on SIGUSR1 under Slurm, and not 0 elsewhere. ``--count`` takes the first so many,
``--jobs`` runs so many at a time.
"""

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"


def main(argv: list[str]) -> int:
    sys.path[:0] = [str(TESTS / "distributed"), str(TESTS / "slurm")]
    from cluster import slurm
    from hangs import LAUNCHERS, MATRIX, faults

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("launchers", nargs="*", choices=LAUNCHERS, default=LAUNCHERS, metavar="LAUNCHER")
    parser.add_argument("--count", type=int, default=len(MATRIX))
    parser.add_argument("--jobs", type=int, default=1, help="fits at a time")
    given = parser.parse_args(argv)
    cells = [cell for cell in MATRIX if cell.launcher in given.launchers][: given.count]
    begun = time.monotonic()
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cluster: Any = None
        if "slurm" in given.launchers:
            (home / "slurm").mkdir()
            cluster = stack.enter_context(slurm(home / "slurm"))

        def run(number: int) -> list[str]:
            folder = home / str(number)
            folder.mkdir()
            found = faults(cells[number], folder, cluster)
            print(f"{time.monotonic() - begun:5.0f} s  {cells[number]}: {'; '.join(found) or 'well'}", flush=True)
            return found

        with ThreadPoolExecutor(given.jobs) as pool:
            results = list(pool.map(run, range(len(cells))))
    good: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for cell, found in zip(cells, results, strict=True):
        good[cell.launcher, cell.harm].append(not found)
    harms = list(dict.fromkeys(cell.harm for cell in cells))
    print(f"\n| launcher | {' | '.join(harms)} |\n|{'---|' * (len(harms) + 1)}")
    for launcher in given.launchers:
        row = [f"{sum(good[launcher, harm])} of {len(good[launcher, harm])}" for harm in harms]
        print(f"| {launcher} | {' | '.join(row)} |")
    bad = sum(bool(found) for found in results)
    hung = sum("hung" in " ".join(found) for found in results)
    print(f"\n{len(cells)} fits asked, {len(cells) - bad} good, {hung} hung; {time.monotonic() - begun:.0f} s")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
