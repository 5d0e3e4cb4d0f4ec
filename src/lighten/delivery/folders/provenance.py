"""Provenance of a run: hashes of recipe, teacher, data and packages, and of every file."""

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lighten.delivery.folders.run import FLOAT_FILE, read_json, sha256
from lighten.delivery.folders.student import FIT
from lighten.utils.fingerprint import fingerprint_of
from lighten.utils.inputs import Call
from lighten.utils.machine import processor, version_of
from lighten.utils.targets import TARGETS, exported_files

PARTS = (
    "recipe.yaml", "fit.json", "plan.json", "sensitivity.json", "history.jsonl",
    *(f"{role}/{name}" for role in ("teacher", "dense", "student")
      for name in ("config.json", "model.safetensors", "compression.json")),
    FLOAT_FILE, *exported_files("student", besides=("onnx",)),
)  # fmt: skip
"""What else of a run folder the figures hang on; ``scores.json`` keeps their hashes."""

PACKAGES = (
    "lighten", "torch", "lightning", "torchmetrics", "transformers", "tokenizers", "datasets", "safetensors", "numpy",
    "onnx", "onnxscript", "onnxruntime", *(target.package for target in TARGETS.values() if target.extra),
)  # fmt: skip
"""What decides, beside the recipe, what a run comes to."""

INPUTS = ("recipe", "teacher", "data", "packages")
"""What a model was made of: keys of ``made_of`` in ``config.json`` and ``scores.json``."""


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that matter; ``None`` is not installed."""
    return {"python": platform.python_version()} | {name: version_of(name) for name in PACKAGES}


def lineage_of(recipe: str, teacher: str | None, data: str) -> dict[str, str | None]:
    """Return what a model was made of, as its folder and ``scores.json`` keep it.

    Args:
        recipe: SHA-256 of all settings that decide what is learned, as in checkpoints.
        teacher: fingerprint of the teacher's weights, as in checkpoints.
        data: fingerprint of the data.

    Returns:
        These and ``packages``, the SHA-256 of :func:`versions`.
    """
    return {"recipe": recipe, "teacher": teacher, "data": data, "packages": fingerprint_of(**versions())}


def provenance(
    run: Path, files: Mapping[Any, Path], data: Any, config: Mapping[str, Any], samples: int, timed: Call
) -> dict[str, Any]:
    """Return the ``provenance`` of ``scores.json``.

    Args:
        run: the run folder.
        files: what was measured, by role.
        data: the data module it was measured on.
        config: the student's ``config.json``.
        samples: how many it was measured on.
        timed: the call that latencies are of.
    """
    fit = read_json(run / FIT, made_by="lighten train recipe=…") if (run / FIT).exists() else {}
    inputs = [*enumerate(timed[0]), *timed[1].items()]
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": run.resolve().name,
        "made_of": {name: config.get("made_of", {}).get(name) for name in INPUTS},
        "trained_with": fit.get("versions", {}),
        "files": {role: {"name": path.name, "sha256": sha256(path)} for role, path in files.items()},
        "parts": {name: sha256(run / name) for name in PARTS if (run / name).exists()},
        "data": {
            "name": config["data"]["name"],
            "split": "test",
            "samples": samples,
            "licence": data.licence,
            "fingerprint": data.fingerprint,
        },
        "timed_on": {str(name): list(x.shape[1:]) for name, x in inputs if hasattr(x, "shape")},
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "system": platform.platform(terse=True),
        },
        "versions": versions(),
    }
