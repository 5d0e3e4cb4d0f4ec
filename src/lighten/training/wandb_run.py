"""A W&B run that stays one run, however often its process is stopped or killed."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from lighten.errors import UserError
from lighten.training.record import OWN_KEYS, read
from lighten.training.wandb_log import is_whole, logs, rows

STEP = "trainer/global_step"
"""What every curve is drawn against: the number of optimizer steps before the one that a value belongs to."""

FAMILIES = ("train", "teacher", "student", "gap", "distil", "prune", "quantize")
"""What comes before the slash in the names of metrics; W&B makes a section of panels of each."""

Key = tuple[int, frozenset[str]]


class WandbRun(WandbLogger):
    """Lightning's W&B logger for a run folder: one run in W&B for one folder, whole after any number of kills.

    W&B writes what it gets into ``wandb/`` of the folder, 32 KiB at a time: after ``kill -9`` up to so much is
    missing there, about thirty log points of ten metrics, 300 steps at one in ten, while ``history.jsonl`` has each.
    When the run is resumed, what is missing is sent from there, and what the fit does again from its checkpoint and W&B
    has already is not sent twice. Offline each start writes a log of its own, all with one id; ``wandb sync`` makes
    one run of them.

    Nothing of the environment, the source code, git, the terminal or the command line is recorded; how busy the machine
    is, is.

    Args:
        folder: the run folder; its name is the run's.
        project: W&B's project.
        config: what W&B shows as the run's settings, instead of the module's hyperparameters.
        again: send again what the fit does again, as it may differ: the run is resumed with other settings.
        named: group and name in W&B, where the run folder's own place does not say them: a trial of a search.
    """

    def __init__(
        self, folder: Path, project: str, config: Mapping[str, Any], *, again: bool = False,
        named: tuple[str, str] | None = None,
    ) -> None:  # fmt: skip
        import wandb

        folder.mkdir(parents=True, exist_ok=True)  # wandb falls back to another place without it
        self.folder, self.again = folder, again
        project = os.environ.get("WANDB_PROJECT", project)
        history = folder / "history.jsonl"
        self._before = read(history) if history.exists() else []
        self._there: set[Key] | None = None
        self._following: int | None = None
        settings = wandb.Settings(
            console="off", disable_git=True, disable_code=True, x_disable_meta=True, x_save_requirements=False,
            allow_val_change=True, max_end_of_run_history_metrics=0, max_end_of_run_summary_metrics=0,
        )  # fmt: skip
        group, name = named or (folder.absolute().parent.name, folder.name)
        self.id_in_wandb = as_id(f"{group}-{name}")
        super().__init__(
            name=name, id=self.id_in_wandb, save_dir=folder, project=project, group=group, config=dict(config),
            settings=settings,
        )  # fmt: skip
        self._wandb_init.pop("anonymous", None)  # which W&B warns of

    @rank_zero_only
    def open(self) -> None:
        """Open the run, which W&B does by itself with the first value; here, what stops it is reported before the fit.

        Raises:
            UserError: without a key or a network, or while another process has the run.
        """
        already = self._experiment is not None
        try:
            with _without_hint():
                run = self.experiment
        except Exception as error:  # W&B's own, those of its service, of the network
            if isinstance(error, OSError | ImportError) and not isinstance(error, ConnectionError | TimeoutError):
                raise
            reason = " ".join(str(error).split()).rstrip(".")
            raise UserError(
                f"logger=wandb: W&B does not start ({reason:.200}); see to it, or set WANDB_MODE=offline and send the "
                f"run later with `wandb sync {self.folder}/wandb/*run-*`"
            ) from error
        if not already:
            for family in FAMILIES:
                run.define_metric(f"{family}/*", step_metric=STEP, step_sync=True)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Leave the config as it was given: it is the resolved recipe, which says more."""
        if not self._wandb_init["config"]:
            super().log_hyperparams(params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send a row, unless W&B has it from before a kill; first of all those that it has lost."""
        self.catch_up()
        assert self._there is not None
        key = _key(step or 0, metrics)
        if key in self._there:
            self._there.discard(key)
        else:
            self._send({**metrics, STEP: step or 0})

    @rank_zero_only
    def catch_up(self) -> None:
        """Open the run and send what W&B lacks of the history, where the fit itself has nothing left to log."""
        self.open()
        if self._there is None:
            self._there = self._go_on()

    @rank_zero_only
    def finish(self, exit_code: int = 0, *, preempted: bool = False) -> None:
        """End what is open, and come back when W&B has written and sent the rest; its process ends too.

        Args:
            exit_code: 0 for a run that came to its end.
            preempted: the run will be resumed.
        """
        import wandb

        if self._experiment is None:
            return
        if preempted:
            self.experiment.mark_preempting()
        offline = self.experiment.offline
        self.experiment.finish(exit_code=exit_code)
        wandb.teardown(exit_code)  # finish alone leaves the last 32 KiB to be written by and by
        self._experiment = None
        if offline:
            self._check()

    def _check(self) -> None:
        """Warn of a log that does not go up to the end: W&B continues without a word where its disk is full."""
        newest = logs(self.folder, self.id_in_wandb)[-1:]
        if not (newest and is_whole(newest[0])):
            rank_zero_warn(
                f"logger=wandb: {self.folder / 'wandb'} holds the run only in part, as its disk was full or failed; "
                "history.jsonl has all of it: free disk space and rerun the same command, which adds what is missing"
            )

    def _go_on(self) -> set[Key]:
        """Send what W&B has lost; return what it has."""
        run, history = self.experiment, self.folder / "history.jsonl"
        if run.offline:
            found = rows(self.folder, run.id)
            there = {_key(row.get(STEP, 0), row) for row in found}
            self._following = max((row["_step"] + 1 for row in found), default=0)
        else:
            there = {_key_of(line) for line in self._before[: run.starting_step]}
            self._following = run.starting_step
        lost = [line for line in (read(history) if history.exists() else []) if _key_of(line) not in there]
        for line in lost:
            values = {name: float("nan") if v is None else v for name, v in line.items() if name not in OWN_KEYS}
            self._send({**values, "epoch": line["epoch"], STEP: max(0, line["step"] - 1)})
        return set() if self.again else there | {_key_of(line) for line in lost}

    def _send(self, row: Mapping[str, float]) -> None:
        if self._following is None:
            self.experiment.log(dict(row))
        else:  # the first one; W&B would number it 0 again
            self.experiment.log(dict(row), step=self._following, commit=True)
            self._following = None


def run_id(folder: Path) -> str:
    """Return W&B's id of a run folder: of its recipe's name and its own, so that a resumed fit finds it."""
    path = folder.absolute()
    return as_id(f"{path.parent.name}-{path.name}")


def as_id(name: str) -> str:
    """Return a name as W&B takes ids: 64 letters, digits, ``-`` and ``_`` at most."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[-64:]


def _key(step: int, names: Mapping[str, Any]) -> Key:
    return int(step), frozenset(n for n in names if n not in OWN_KEYS and n != STEP and not n.startswith("_"))


def _key_of(line: Mapping[str, Any]) -> Key:
    return _key(max(0, line["step"] - 1), line)


@contextmanager
def _without_hint() -> Iterator[None]:
    """Keep back W&B's hint that offline runs do not resume: their logs are put together when they are sent."""
    import wandb

    original = wandb.termwarn

    def quieter(string: str, *args: Any, **kwargs: Any) -> None:
        if not string.startswith("`resume` will be ignored"):
            original(string, *args, **kwargs)

    wandb.termwarn = quieter
    try:
        yield
    finally:
        wandb.termwarn = original
