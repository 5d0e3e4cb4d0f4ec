"""What a run survives, counted: ``python benchmarks/reliability.py PART [--count N]``; without a part, the parts.

Each part is a file beside this one, ``reliability_PART.py``, prints a table, and ends with 0 only if all went well.
"""

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(argv: list[str]) -> int:
    prefix = "reliability_"
    parts = sorted(path.stem.removeprefix(prefix) for path in HERE.glob(f"{prefix}*.py"))
    if not argv or argv[0] not in parts:
        print(f"{(__doc__ or '').splitlines()[0]}\nParts: {', '.join(parts)}", file=sys.stderr)
        return 2
    sys.path.insert(0, str(HERE))
    return int(importlib.import_module(prefix + argv[0]).main(argv[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
