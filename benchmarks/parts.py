"""Parts of ``python -m benchmarks``: which script, with which words, makes which claims, and how each is run.

The limits of all parts together are what the whole may take on two cores.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rows import Row, read

HERE = Path(__file__).parent
MINUTES = 75


@dataclass(frozen=True)
class Part:
    """A subprocess that makes some of the rows.

    Attributes:
        name: as it is selected.
        claims: what it measures, in a line.
        script: beside this file, or a path.
        words: of its command line.
        quick: words instead, that show in little time that it runs.
        limit: seconds that it may take; what has a row until then stays.
        rows: the option that takes the path of its rows.
    """

    name: str
    claims: str
    script: str
    words: Sequence[str]
    quick: Sequence[str]
    limit: int
    rows: str = "--json"

    def command(self, *, quick: bool) -> list[str]:
        """Return script and words."""
        return [str(HERE / self.script), *(self.quick if quick else self.words)]


ZOO = ("torchvision/resnet18", "torchvision/mobilenet_v2", "timm/deit_tiny_patch16_224", "torchvision/swin_t",
       "transformers/bert", "transformers/gpt2", "transformers/vit", "transformers/llama")  # fmt: skip
SEEDS = ("--seeds", "2")
PARTS = (
    Part("step", "what a training step through int8 costs", "quantization_peers.py",
         ["--batch", "128", "--steps", "40"], ["--steps", "6", "--batch", "8"], 720),
    Part("cost", "what a step costs with a teacher, Prune and Quantize all on", "step_cost.py",
         [], ["--steps", "18", "--batch", "8"], 240),
    Part("live", "what a fit costs that prunes by cuts", "live.py",
         ["fits", "--networks", "student", "--epochs", "1"],
         ["fits", "--networks", "student", "--epochs", "1", "--batches", "6"], 300),
    Part("distil", "what a distillation step costs, and what it gives", "distillation_peers.py",
         SEEDS, ["--quick", "--batch", "8"], 540),
    Part("speed", "latency and size of int8 files", "quantization.py", ["speed"], ["speed", "--quick"], 360),
    Part("exact", "answers in which a file and fake-quantized PyTorch differ", "quantization.py",
         ["agreement"], ["agreement", "--quick"], 300),
    Part("accuracy", "accuracy through int8 after equal steps, and each library's file", "quantization_accuracy.py",
         [*SEEDS, "--epochs", "1"], ["--quick"], 840),
    Part("pruning", "accuracy and latency at equal multiply-accumulates", "pruning.py",
         ["accuracy", *SEEDS, "--epochs", "2"],
         ["accuracy", "--seeds", "1", "--epochs", "1", "--dense-epochs", "1", "--batches", "4",
          "--only", "magnitude"], 540),
    Part("zoo", "whether cut networks equal the masked ones", "foreign_peers.py",
         [*ZOO, "--limit", "30"], [ZOO[0], "--limit", "30"], 420, "--rows"),
    Part("resume", "what is left of pruning after a resume", "resume.py", [], [], 120),
)  # fmt: skip
"""All parts, in their order."""


def run_part(part: Part, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Run a part in a process of its own; return what it says, as it stands in ``folder``.

    A part that is done by the same command is not run again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, rows, words = folder / f"{part.name}.json", folder / f"{part.name}.rows.json", part.command(quick=quick)
    if path.exists() and (earlier := json.loads(path.read_text()))["status"] == "done" and earlier["words"] == words:
        return earlier
    rows.unlink(missing_ok=True)
    own = [part.rows, str(rows)]
    if part.rows != "--json":  # its own results, which it would go on from
        own += ["--json", str(folder / f"{part.name}.results.json")]
    begun, load = time.perf_counter(), os.getloadavg()[0]
    with (folder / f"{part.name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *words, *own], stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(timeout=part.limit)
        except subprocess.TimeoutExpired:
            code = None
        except BaseException:
            _end(process)
            raise
    if code is None:
        _end(process)
    status, error = "done", ""
    if code is None:
        status, error = "slow", f"not ended after {part.limit} s"
    elif code:
        status, error = "failed", _last_line(folder / f"{part.name}.log") or f"exit code {code}"
    found = {
        "part": part.name, "claims": part.claims, "words": words, "quick": quick, "status": status, "error": error,
        "seconds": round(time.perf_counter() - begun, 1), "load": [load, os.getloadavg()[0]],
        "rows": [asdict(row) for row in (read(rows) if rows.exists() else ())],
    }  # fmt: skip
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def rows_of(found: dict[str, Any]) -> list[Row]:
    """Return a part's rows, one that says why where it has none."""
    shown = f"python {' '.join([os.path.relpath(found['words'][0]), *found['words'][1:]])}"
    rows = [Row(**{**row, "part": found["part"]}) for row in found["rows"]]
    if found["status"] != "done":
        rows.append(Row(found["part"], found["claims"], "", f"{found['status']}: {found['error']}", command=shown))
    return rows


def _end(process: "subprocess.Popen[bytes]") -> None:
    os.killpg(process.pid, signal.SIGKILL)  # its own group: it, and what it has started
    process.wait()


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
