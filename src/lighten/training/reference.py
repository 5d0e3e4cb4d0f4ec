"""A reference model (a teacher, a dense student) that is trained once and then found again."""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import load_model, save_model
from torch import nn

from lighten.errors import UserError
from lighten.training.files import replace_file, write_whole


def reference(
    folder: str | Path,
    build: Callable[[], nn.Module],
    fit: Callable[[nn.Module], Any],
    fingerprint: str,
) -> nn.Module:
    """Return the reference model called ``fingerprint``, training it unless ``folder`` has it already.

    ``folder/<fingerprint>`` holds ``model.safetensors`` and, written last, ``manifest.json`` with its
    SHA-256. A damaged one gives one warning and is trained anew. All ranks call this; rank zero writes.

    Args:
        folder: where references are kept, shared between runs.
        build: makes the untrained model.
        fit: trains it in place.
        fingerprint: see :func:`fingerprint_of`.

    Returns:
        The model in eval mode, on the CPU.
    """
    home = Path(folder) / fingerprint
    model = build()
    if (home / "manifest.json").exists():
        problem = _load(model, home)
        if problem is None:
            return model.eval()
        warnings.warn(f"reference model {home}: {problem}; it is trained anew", stacklevel=2)
        model = build()
    fit(model)
    model.cpu().eval()
    _save(model, home, fingerprint)
    return model


def fingerprint_of(**parts: Any) -> str:
    """Return the SHA-256 (hex) of everything that decides what a model becomes, as canonical JSON.

    Args:
        parts: such as ``model``, ``data``, ``settings`` and ``seed``; plain Python throughout.

    Raises:
        UserError: if a part is not plain Python.

    Example:
        >>> fingerprint_of(a=1, b=[2]) == fingerprint_of(b=[2], a=1)
        True
    """
    try:
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"a fingerprint is made of plain Python values only ({error})") from error
    return hashlib.sha256(text.encode()).hexdigest()


@rank_zero_only
def _save(model: nn.Module, home: Path, fingerprint: str) -> None:
    home.mkdir(parents=True, exist_ok=True)
    (home / "manifest.json").unlink(missing_ok=True)
    weights = home / "model.safetensors"
    write_whole(weights, lambda path: save_model(model, str(path)))
    manifest = {"schema": 1, "fingerprint": fingerprint, **_measured(weights)}
    text = json.dumps(manifest, indent=1) + "\n"
    replace_file(home / "manifest.json", lambda file: file.write(text.encode()))


def _load(model: nn.Module, home: Path) -> str | None:
    weights = home / "model.safetensors"
    try:
        manifest: Mapping[str, Any] = json.loads((home / "manifest.json").read_text())
        if _measured(weights) != {"sha256": manifest["sha256"], "bytes": manifest["bytes"]}:
            return f"{weights.name} is not what its manifest says: it is damaged"
        load_model(model, str(weights))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        return f"it cannot be read ({(str(error).splitlines() or [''])[0]})"
    return None


def _measured(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}
