"""The table of ``python -m benchmarks``, as Markdown and as JSON: machine, versions, and a line for each figure."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rows import Row

from lighten.utils.machine import cores, processor, processor_flags, version_of

PACKAGES = (
    "lighten", "torch", "lightning", "onnxruntime", "openvino", "ai-edge-litert", "executorch", "torchao", "nncf",
    "brevitas", "nvidia-modelopt", "coreai-opt", "torch-pruning", "torch-kirigami", "fasterai", "only-train-once",
    "torchdistill",
)  # fmt: skip
NO_SCRIPT = {
    "fasterai": "no script sets it up yet",
    "only-train-once": "no script sets it up yet",
    "PaddleSlim": "of another framework, and no published figures are kept here to cite",
}
"""Peers that no part asks, and why."""


def machine() -> dict[str, Any]:
    """Return what figures depend on."""
    return {
        "processor": processor(), "class": processor_class(processor_flags()), "cores": cores(),
        "threads": os.environ.get("OMP_NUM_THREADS", "as each script says"), "system": platform.platform(),
        "python": platform.python_version(),
    }  # fmt: skip


def processor_class(flags: frozenset[str]) -> str:
    """Return the best of what int8 kernels use.

    Example:
        >>> processor_class(frozenset({"avx2", "avx512f", "avx512_vnni"}))
        'AVX512-VNNI'
    """
    classes = {"amx_int8": "AMX", "avx512_vnni": "AVX512-VNNI", "avx_vnni": "AVX-VNNI", "avx512f": "AVX512",
               "avx2": "AVX2", "asimddp": "Arm, dot products", "asimd": "Arm"}  # fmt: skip
    return next((name for flag, name in classes.items() if flag in flags), "none known")


def versions() -> dict[str, str]:
    """Return what is installed, and what is not."""
    return {name: version_of(name) or "not installed" for name in PACKAGES}


def write(folder: Path, rows: Sequence[Row], about: dict[str, Any]) -> Path:
    """Write ``table.json`` and ``table.md``; return the latter's path."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {**about, "no_script": NO_SCRIPT, "rows": [{**asdict(row), "ratios": ratios(row)} for row in rows]}
    (folder / "table.json").write_text(json.dumps({"schema": 1, **told}, indent=1) + "\n", encoding="utf-8")
    path = folder / "table.md"
    path.write_text(markdown(rows, about), encoding="utf-8")
    return path


def ratios(row: Row) -> dict[str, float]:
    """Return ours over each peer's, where both are figures.

    Example:
        >>> ratios(Row("step", "a step", "ms", 2.0, {"A": 4.0, "B": "not installed"}))
        {'A': 0.5}
    """
    if isinstance(row.ours, str):
        return {}
    return {name: row.ours / value for name, value in row.peers.items() if not isinstance(value, str) and value}


def markdown(rows: Sequence[Row], about: dict[str, Any]) -> str:
    """Return the table."""
    facts = about["machine"]
    lines = [
        "# lighten beside others\n",
        "Quick settings: the figures mean nothing.\n" if about["quick"] else
        "Figures of one part were measured side by side; the ratio is lighten's figure over the other's.\n",
        f"{facts['processor']} ({facts['class']}), {facts['cores']} cores, OMP_NUM_THREADS {facts['threads']}; "
        f"Python {facts['python']}; load {about['load'][0]:.1f} at the start, {about['load'][1]:.1f} at the end. "
        + ", ".join(f"{name} {version}" for name, version in about["versions"].items()) + ".\n",
        "| part | claim | better | who | figure | spread | ratio | command |", "|---|---|---|---|---:|---:|---:|---|",
    ]  # fmt: skip
    for row in rows:
        shares = ratios(row)
        cells = [row.part, _text(row.claim), row.better, "**lighten**", _figure(row.ours, row.unit)]
        lines.append(_line([*cells, _spread(row, "lighten"), "", f"`{row.command}`"]))
        for name, value in row.peers.items():
            share = f"{shares[name]:.3g}" if name in shares else ""
            lines.append(_line(["", "", "", _text(name), _figure(value, row.unit), _spread(row, name), share, ""]))
    took = [f"{part['part']} {part['status']} in {part['seconds']:.0f} s at load {part['load'][0]:.1f} to "
            f"{part['load'][1]:.1f}" for part in about["parts"]]  # fmt: skip
    unasked = [f"{name} ({why})" for name, why in NO_SCRIPT.items()]
    lines += [f"\nParts: {'; '.join(took)}.", f"\nNot asked: {'; '.join(unasked)}."]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _figure(value: float | str, unit: str) -> str:
    return _text(value) if isinstance(value, str) else f"{value:.4g} {unit}".strip()


def _spread(row: Row, name: str) -> str:
    return f"± {row.spread[name]:.2g}" if name in row.spread else ""


def _text(words: str) -> str:
    return " ".join(words.replace("|", "/").split())
