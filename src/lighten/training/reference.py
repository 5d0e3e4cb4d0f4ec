"""Reference models (a teacher, a dense student): trained once, then found again."""

import errno
import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import load_model, save_model
from torch import nn

from lighten.errors import UserError, first_line
from lighten.training.peers import watch
from lighten.training.rank import is_rank_zero
from lighten.utils.files import disk_errors_as_user_errors, sync_folder, write_whole

WEIGHTS, MANIFEST, HISTORY = "model.safetensors", "manifest.json", "history.jsonl"

PATIENCE = 90
"""Seconds that a network's file system may take to show all nodes a folder."""


def reference(
    folder: str | Path,
    build: Callable[[], nn.Module],
    fit: Callable[[nn.Module], Any],
    fingerprint: str,
    *,
    work: Path | None = None,
    agree: Callable[[bool], bool] = bool,
) -> nn.Module:
    """Return the reference model called ``fingerprint``, training it unless ``folder`` has it already.

    ``folder/<fingerprint>`` holds ``model.safetensors``, ``manifest.json`` with its SHA-256, and the fit's history. It
    comes into being at once, by renaming. A damaged one gives one warning and is trained again. Runs that train the
    same one at the same time do not wait for each other: each works in a folder of its own, and whoever is done first
    gives what all of them then find. All ranks call this; rank zero writes.

    Args:
        folder: where references are kept, shared between runs.
        build: makes the untrained model.
        fit: trains it in place.
        fingerprint: see :func:`fingerprint_of`.
        work: what ``fit`` writes into, this run's alone, on the disk of ``folder``; removed when all is done.
        agree: gives all ranks rank zero's answer: another run may be done in between two ranks' looks.

    Returns:
        The model in eval mode, on the CPU.

    Raises:
        DiskError: if it cannot be written.
    """
    home = Path(folder) / fingerprint
    work = Path(folder) / f"{fingerprint}.fit" if work is None else work
    model = build()
    problem = _load(model, home)
    if problem:
        warnings.warn(f"reference model {home}: {problem}; it is trained again", stacklevel=2)
    found = agree(problem is None)
    if not found:
        problem, model = "", build()
        fit(model)
        model.cpu().eval()
        found = agree(is_rank_zero() and _publish(model, home, work, fingerprint, build))
    if found and problem is not None:
        model = _awaited(build, home)
    _clear(work)
    return model.eval()


def agreed(found: bool, trainer: L.Trainer) -> bool:
    """Return rank zero's answer on all ranks; their processes are started where there are none yet.

    From here on they are watched as in a fit: whatever happens to one ends them all.
    """
    strategy: Any = trainer.strategy
    strategy.connect(L.LightningModule())

    def ask() -> bool:
        strategy.setup_environment()
        watch(trainer)
        return bool(strategy.broadcast(found))

    return ask() if strategy.launcher is None else strategy.launcher.launch(ask, trainer=trainer)


def _publish(model: nn.Module, home: Path, work: Path, fingerprint: str, build: Callable[[], nn.Module]) -> bool:
    """Put the model where all runs find it; return whether another run was faster, whose model is then taken."""
    done = work / "done"

    def save(folder: Path) -> None:
        folder.mkdir()
        save_model(model, str(folder / WEIGHTS))
        manifest = {"schema": 1, "fingerprint": fingerprint, **_measured(folder / WEIGHTS)}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        if (work / HISTORY).exists():
            shutil.copyfile(work / HISTORY, folder / HISTORY)

    with disk_errors_as_user_errors(home, "be written"):
        _remove(done)
        write_whole(done, save)
        home.parent.mkdir(parents=True, exist_ok=True)
        while True:
            if home.exists():
                if _load(build(), home) is None:
                    return True
                _remove(work / "damaged")
                home.rename(work / "damaged")
            try:
                done.rename(home)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            else:
                sync_folder(home.parent)
                return False


def _awaited(build: Callable[[], nn.Module], home: Path) -> nn.Module:
    """Return what rank zero sees; a network's file system may show it to others later."""
    for _ in range(PATIENCE):
        problem = _load(model := build(), home)
        if problem is None:
            return model
        time.sleep(1)
    raise UserError(
        f"reference model {home}: rank zero can load it, this process cannot ({problem or 'it is not there'})"
    )


@rank_zero_only
def _clear(work: Path) -> None:
    """Remove what training needed, also where a kill came before."""
    with disk_errors_as_user_errors(work, "be removed"):
        _remove(work)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _load(model: nn.Module, home: Path) -> str | None:
    """Load the weights of a reference; return what is wrong: nothing at all is "", ``None`` is nothing wrong."""
    if not (home / MANIFEST).exists():
        return ""
    try:
        if (problem := _problem(home)) is None:
            load_model(model, str(home / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        problem = f"it cannot be read ({first_line(error)})"
    return problem


def _problem(home: Path) -> str | None:
    manifest: Mapping[str, Any] = json.loads((home / MANIFEST).read_text())
    if _measured(home / WEIGHTS) != {"sha256": manifest["sha256"], "bytes": manifest["bytes"]}:
        return f"{WEIGHTS} is not what its manifest says: it is damaged"
    return None


def _measured(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}
