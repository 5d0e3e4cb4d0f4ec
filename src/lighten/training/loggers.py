"""Loggers by name."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger

from lighten.errors import UserError, did_you_mean
from lighten.training.signals import Preempted
from lighten.training.wandb_run import WandbRun


def make_logger(
    name: str, folder: str | Path, *, project: str = "lighten", config: Mapping[str, Any] | None = None
) -> Logger | Literal[False]:
    """Return the logger called ``name``, writing under ``folder``; ``False`` for ``none``.

    W&B runs offline with ``WANDB_MODE=offline`` and is opened here, so that what stops it is reported before the fit:
    see :class:`~lighten.training.wandb_run.WandbRun`. Curves are drawn against ``trainer/global_step``.

    Args:
        name: ``csv``, ``tensorboard``, ``wandb`` or ``none``.
        folder: the run folder.
        project: W&B's project, where ``WANDB_PROJECT`` names none.
        config: what the run was asked to do, as plain Python.

    Raises:
        UserError: for an unknown name, a package that is not installed, or W&B without a key or a network.
    """
    folder = Path(folder)
    makers: dict[str, Callable[[], Logger | Literal[False]]] = {
        "csv": lambda: CSVLogger(folder, name="csv"),
        "tensorboard": lambda: TensorBoardLogger(folder, name="tensorboard", version=""),
        "wandb": lambda: _wandb(folder, project, config or {}),
        "none": lambda: False,
    }
    if name not in makers:
        raise UserError(f"logger={name!r}; {did_you_mean(name, makers)}")
    try:
        return makers[name]()
    except ImportError as error:
        raise UserError(f"logger={name} needs a package that is missing; install it: pip install {name}") from error


@contextmanager
def ending(logger: Logger | Literal[False]) -> Iterator[None]:
    """End a W&B run together with the block: as done, as one to be resumed, or as failed."""
    try:
        yield
    except BaseException as error:
        if isinstance(logger, WandbRun):
            code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
            logger.finish(code, preempted=isinstance(error, Preempted))
        raise
    if isinstance(logger, WandbRun):
        logger.finish()


def _wandb(folder: Path, project: str, config: Mapping[str, Any]) -> Logger:
    logger = WandbRun(folder, project, config, again=config.get("resume") == "changed")
    logger.open()
    return logger
