"""History of a fit: one JSON object a line."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from lighten.errors import UserError
from lighten.training.progress import fit_progress
from lighten.training.usage import NAMES, Usage
from lighten.utils.files import append_line, disk_errors_as_user_errors, replace_file

OWN_KEYS = ("step", "epoch", "progress", "time", *NAMES)
"""What a line says beside the metrics: where the fit is, and how busy the machine."""


class History(Callback):
    """Appends a line to ``path`` whenever the fit logs: every ``log_every_n_steps`` steps and after validation.

    A line is ``{"step", "epoch", "progress", "time", "system/…", <metric>...}`` with what was logged at that moment:
    ``step`` counts optimizer steps done, ``progress`` is their share of the fit (null for a fit without end),
    ``time`` is seconds since the fit began, pauses between resumed parts left out, ``system/…`` is what
    :mod:`~lighten.training.usage` finds; a value that is not finite is null. Rank zero writes, line by line. On resume,
    lines beyond the resumed step are dropped. A line that cannot be written stops the fit, as a checkpoint does: a
    report with holes would look like a whole one.

    Args:
        path: the file; its folder is made.

    Raises:
        DiskError: if it cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._elapsed = 0.0
        self._begun: float | None = None
        self._usage = Usage()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Listen to what is logged, whichever other loggers there are."""
        if stage == "fit" and not any(isinstance(logger, _Listener) for logger in trainer.loggers):
            trainer.loggers = [*trainer.loggers, _Listener(trainer, self)]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop lines that the resumed fit will write again, and start the clock."""
        self._begun, self._usage = time.monotonic(), Usage()
        if trainer.is_global_zero:
            with disk_errors_as_user_errors(self.path, "be written"):
                self.path.parent.mkdir(parents=True, exist_ok=True)
            keep_until(self.path, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds that the fit has taken."""
        return {"time": self._time()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting from where the checkpoint was saved."""
        self._elapsed = float(state_dict["time"])

    def write(self, trainer: L.Trainer, metrics: Mapping[str, float]) -> None:
        """Append one line; rank zero only."""
        if trainer.state.fn != "fit" or self._begun is None:
            return
        step = trainer.global_step
        line: dict[str, Any] = {
            "step": step,
            "epoch": trainer.current_epoch,
            "progress": _progress(trainer),
            "time": round(self._time(), 3),
            **self._usage.look(),
        }
        line.update({k: float(v) for k, v in metrics.items() if k not in line})
        append_line(self.path, json.dumps({k: _plain(v) for k, v in line.items()}))

    def _time(self) -> float:
        return self._elapsed + (0.0 if self._begun is None else time.monotonic() - self._begun)


def read(path: str | Path) -> list[dict[str, Any]]:
    """Return the lines of a history; one that was cut short by a kill is left out."""
    lines = []
    for text in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def log_now(trainer: L.Trainer, values: Mapping[str, float]) -> None:
    """Give ``values`` to all loggers at once, at log points or between them; from a hook after an optimizer step.

    For what changes seldom and is much: it is logged when it changes, not at each log point.
    """
    given: dict[str, Any] = dict(values)
    trainer._logger_connector.log_metrics(given)


def keep_until(path: Path, step: int) -> None:
    """Rewrite the history at ``path`` without lines beyond ``step``; a fit that begins again keeps none."""
    if not path.exists():
        return
    kept = [line for line in read(path) if step > 0 and line["step"] <= step]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    replace_file(path, lambda file: file.write(text.encode()))


class _Listener(Logger):
    """A Logger that forwards Lightning's logged metrics to History."""

    def __init__(self, trainer: L.Trainer, history: History) -> None:
        super().__init__()
        self._trainer = trainer
        self._history = history

    @property
    def name(self) -> str:
        return "history"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._history.write(self._trainer, metrics)


def _progress(trainer: L.Trainer) -> float | None:
    try:
        return fit_progress(trainer)
    except UserError:
        return None


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
