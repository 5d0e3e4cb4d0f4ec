"""All that is claimed beside others, in one table: ``python -m benchmarks [PART …] [--quick] [--list] [--out FOLDER]``.

Runs the scripts of this folder one after another, each with a time limit, and writes ``table.md`` and ``table.json``
into FOLDER, with what each part said beside them. What is done by the same command is not run again; ``--again`` does.
A part that fails or is slow, and a library that is not installed, stand in the table with the line that says why.
"""

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # the scripts import each other by name

from comparison import machine, versions, write
from parts import MINUTES, PARTS, Part, rows_of, run_part


def main(argv: Sequence[str], parts: Sequence[Part] = PARTS) -> int:
    """Run what is asked for, and write the table after each part."""
    known = {part.name: part for part in parts}
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(known)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="show that they run; the figures mean nothing")
    parser.add_argument("--list", action="store_true", help="print the parts, and run nothing")
    parser.add_argument("--out", type=Path, help="folder of results (default: runs/benchmarks/table, or …/quick)")
    parser.add_argument("--again", action="store_true", help="run what is done as well")
    asked = parser.parse_args(argv)
    if unknown := [name for name in asked.parts if name not in known]:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(known)}")
    if asked.list:
        for part in parts:
            print(f"{part.name:10} {part.claims} (benchmarks/{part.script}, at most {part.limit / 60:.0f} min)")
        print(f"{sum(part.limit for part in parts) / 60:.0f} of {MINUTES} minutes in all")
        return 0
    out = asked.out or Path("runs/benchmarks") / ("quick" if asked.quick else "table")
    if asked.again and out.exists():
        shutil.rmtree(out)
    load, done = os.getloadavg()[0], []
    for name in asked.parts or known:
        print(f"{name}: {known[name].claims} …", flush=True)
        done.append(run_part(known[name], out, quick=asked.quick))
        print(f"{name}: {done[-1]['status']} in {done[-1]['seconds']} s {done[-1]['error']}".rstrip(), flush=True)
        about = {
            "machine": machine(), "versions": versions(), "load": [load, os.getloadavg()[0]], "quick": asked.quick,
            "parts": [{key: value for key, value in part.items() if key != "rows"} for part in done],
        }  # fmt: skip
        path = write(out, [row for part in done for row in rows_of(part)], about)
    print(f"\n{path.read_text()}\n{path}")
    return int(any(part["status"] != "done" for part in done))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part that runs ends as well
    sys.exit(main(sys.argv[1:]))
