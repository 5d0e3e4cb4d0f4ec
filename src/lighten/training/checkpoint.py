"""Atomic checkpoints with a manifest."""

import hashlib
import json
import os
import warnings
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lighten.errors import UserError, first_line
from lighten.utils.files import remove_stale, replace_file

MANIFEST_SUFFIX = ".manifest.json"


class AtomicCheckpointIO(CheckpointIO):
    """Saves so that a kill at any moment leaves nothing that is taken for whole, and loads only what is.

    The data go to a temporary file in the destination folder, are flushed to the disk and renamed; the
    manifest ``NAME.manifest.json`` with size and SHA-256 comes last and is the mark of a finished save.
    Nothing is loaded without a manifest that fits, and never with anything but ``weights_only=True``.

    Example:
        >>> trainer = L.Trainer(plugins=[AtomicCheckpointIO()])  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._cleaned: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint``, then its manifest. Runs on rank zero.

        Raises:
            UserError: if ``path`` is a URL, or the disk refuses; an earlier file of that name then stays.
        """
        target = _local(path)
        if storage_options is not None:
            raise TypeError("AtomicCheckpointIO writes to local folders and has no storage_options")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.parent not in self._cleaned:
                remove_stale(target.parent)
                self._cleaned.add(target.parent)
            digest, size = replace_file(target, lambda file: torch.save(checkpoint, file))
            manifest = {
                "schema": 2,
                "sha256": digest,
                "bytes": size,
                "step": checkpoint.get("global_step"),
                "epoch": checkpoint.get("epoch"),
            }
            replace_file(manifest_of(target), lambda file: file.write(sealed(manifest).encode()))
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"checkpoint {target} could not be written ({reason}); earlier ones are kept: fix the disk and resume"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Return the checkpoint at ``path``, on the CPU unless ``map_location`` says otherwise.

        Raises:
            UserError: if it is a URL, missing, uncommitted, damaged, or more than weights and plain values.
        """
        target = _local(path)
        if weights_only is False:
            raise UserError(f"weights_only=False would run code that {target} may hold; leave it out")
        try:
            with target.open("rb") as file:
                problem = _problem(target, file)
                if problem is None:
                    file.seek(0)
                    return torch.load(file, map_location=map_location or "cpu", weights_only=True)
        except OSError as error:
            problem = error.strerror or str(error)
        except Exception as error:
            # torch.load raises whatever its reader raises, and then advises the unsafe
            reason = first_line(error).partition(". ")[0]
            problem = f"it cannot be read safely: {reason}"
        raise UserError(f"checkpoint {target}: {problem}; resume from another one in {target.parent}")

    def remove_checkpoint(self, path: Any) -> None:
        """Remove the manifest, then the data."""
        target = _local(path)
        manifest_of(target).unlink(missing_ok=True)
        target.unlink(missing_ok=True)


class KeepCheckpoints(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint`` for folders that are resumed from, and that may have moved since.

    What kills have left in the folder goes once a save is done or the fit is over: files that begin as those of this
    callback do and are not among the ones that it keeps.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Accept a folder with earlier checkpoints: that is what resuming means."""
        if trainer.is_global_zero and stage == "fit":
            remove_stale(Path(str(self.dirpath)))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*exists and is not empty")
            super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what is kept, by file name: the folder may be elsewhere now."""
        state = dict(state_dict)
        for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[key] = self._here(state[key])
        state["best_k_models"] = {self._here(path): score for path, score in state["best_k_models"].items()}
        super().load_state_dict({**state, "dirpath": self.dirpath})

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave nothing behind that is not kept; a fit that was done already has saved nothing."""
        self._tidy(trainer)

    def _save_checkpoint(self, trainer: Any, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self._tidy(trainer)

    def _tidy(self, trainer: Any) -> None:
        """Remove what a kill between two saves, or a fit that went back, has left: nobody else knows of it."""
        begins = (self.filename or "").partition("{")[0]
        kept = {os.path.basename(path) for path in self.best_k_models}
        if trainer.is_global_zero and begins and kept:
            for path in Path(str(self.dirpath)).glob(f"{begins}*.ckpt"):
                if path.name not in kept:
                    trainer.strategy.remove_checkpoint(path)

    def _here(self, path: str) -> str:
        return os.path.join(str(self.dirpath), os.path.basename(path)) if path else path


def checkpointing(
    folder: str | Path,
    *,
    monitor: str | None = "student/accuracy",
    mode: str = "max",
    every_n_train_steps: int | None = None,
) -> list[Callback]:
    """Return callbacks that keep the best, the last and the one before last, saved at the ends of epochs.

    Args:
        folder: where they go.
        monitor: the metric of the best; ``None`` keeps no best.
        mode: ``max`` or ``min``.
        every_n_train_steps: keep two more that are saved every so many optimizer steps.
    """
    name = "{epoch:03d}-{step:07d}"
    common: dict[str, Any] = {"dirpath": Path(folder).absolute(), "enable_version_counter": False}
    recent: dict[str, Any] = {**common, "monitor": "step", "mode": "max", "save_top_k": 2}
    callbacks: list[Callback] = []
    if monitor is not None:
        # first, so that the later save of the same epoch knows about it
        best: dict[str, Any] = {
            "filename": f"best-{name}",
            "monitor": monitor,
            "mode": mode,
            "save_on_train_epoch_end": True,
        }
        callbacks.append(KeepCheckpoints(**common, **best))
    if every_n_train_steps:
        callbacks.append(KeepCheckpoints(**recent, filename=f"step-{name}", every_n_train_steps=every_n_train_steps))
    callbacks.append(KeepCheckpoints(**recent, filename=f"last-{name}", save_on_train_epoch_end=True))
    return callbacks


def latest_good(folder: str | Path) -> Path | None:
    """Return the checkpoint with the most steps that is whole, or ``None``; one warning tells what was passed over.

    The file is read and hashed in full. Of equal steps, the one that was saved last is taken.
    """
    bad: list[str] = []
    for path in sorted(Path(folder).glob("*.ckpt"), key=_age, reverse=True):
        problem = verify(path)
        if problem is None:
            if bad:
                warnings.warn(f"{'; '.join(bad)}: going back to {path.name}", stacklevel=2)
            return path
        bad.append(f"checkpoint {path.name}: {problem}")
    if bad:
        warnings.warn(f"{'; '.join(bad)}: no good checkpoint is left", stacklevel=2)
    return None


def verify(path: str | Path) -> str | None:
    """Return what is wrong with the checkpoint at ``path``, or ``None`` if it fits its manifest."""
    target = _local(path)
    try:
        with target.open("rb") as file:
            return _problem(target, file)
    except OSError as error:
        return error.strerror or str(error)


def manifest_of(path: Path) -> Path:
    """Return where the manifest of a checkpoint is."""
    return path.with_name(path.name + MANIFEST_SUFFIX)


def sealed(manifest: dict[str, Any]) -> str:
    """Return the text of a manifest, which ends with the SHA-256 of the rest: a damaged one is not believed."""
    seal = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    return json.dumps({**manifest, "seal": seal}, indent=1) + "\n"


def _problem(target: Path, file: BufferedReader) -> str | None:
    manifest = _manifest(target)
    if manifest is None:
        return f"there is no readable {manifest_of(target).name} beside it, so its save was cut short"
    size = os.fstat(file.fileno()).st_size
    if size != manifest.get("bytes"):
        return f"it has {size} bytes, its manifest says {manifest.get('bytes')}"
    if hashlib.file_digest(file, "sha256").hexdigest() != manifest.get("sha256"):
        return "its SHA-256 is not the one in its manifest: it is damaged"
    return None


def _manifest(target: Path) -> dict[str, Any] | None:
    try:
        text = manifest_of(target.resolve()).read_text()  # save_last="link" makes a link to the data alone
        content = json.loads(text)
        content.pop("seal")
        return content if sealed(content) == text else None
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return None


def _age(path: Path) -> tuple[int, int, str]:
    step = (_manifest(path) or {}).get("step")
    try:
        saved = path.stat().st_mtime_ns
    except OSError:
        saved = 0
    return (step if isinstance(step, int) else -1, saved, path.name)


def _local(path: Any) -> Path:
    if "://" in str(path):
        raise UserError(f"checkpoint {path} is a URL, expected a local file; download it and check where it is from")
    return Path(path)
