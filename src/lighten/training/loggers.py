"""Loggers by name."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger

from lighten.errors import UserError, did_you_mean


def make_logger(
    name: str, folder: str | Path, *, project: str = "lighten", config: Mapping[str, Any] | None = None
) -> Logger | Literal[False]:
    """Return the logger called ``name``, writing under ``folder``; ``False`` for ``none``.

    W&B runs offline with ``WANDB_MODE=offline``; the folder's name is the run's name and, so that a resumed
    fit continues the same run, decides its id. Curves are drawn against ``trainer/global_step``.

    Args:
        name: ``csv``, ``tensorboard``, ``wandb`` or ``none``.
        folder: the run folder.
        project: W&B's project.
        config: what the run was asked to do, as plain Python.

    Raises:
        UserError: for an unknown name, or a package that is not installed.
    """
    folder = Path(folder)
    makers: dict[str, Callable[[], Logger | Literal[False]]] = {
        "csv": lambda: CSVLogger(folder, name="csv"),
        "tensorboard": lambda: TensorBoardLogger(folder, name="tensorboard", version=""),
        "wandb": lambda: _wandb(folder, project, config),
        "none": lambda: False,
    }
    if name not in makers:
        raise UserError(f"logger={name!r}; {did_you_mean(name, makers)}")
    try:
        return makers[name]()
    except ImportError as error:
        raise UserError(f"logger={name} needs a package that is missing; install it: pip install {name}") from error


def _wandb(folder: Path, project: str, config: Mapping[str, Any] | None) -> Logger:
    folder.mkdir(parents=True, exist_ok=True)  # wandb falls back to another place without it
    return WandbLogger(
        name=folder.name,
        id=_run_id(folder),
        save_dir=folder,
        project=project,
        config=dict(config or {}),
    )


def _run_id(folder: Path) -> str:
    path = folder.absolute()
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in f"{path.parent.name}-{path.name}")[-64:]
