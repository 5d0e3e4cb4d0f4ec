"""A sweep's study: Optuna's storage in a folder, shared by processes, of which any may be killed at any moment."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lighten.errors import UserError
from lighten.recipe.sweep import Interval, Space, Sweep
from lighten.search.journal import journal_at, lock_of
from lighten.utils.files import disk_errors_as_user_errors

JOURNAL = "study.log"
AT_FIRST = 4
"""Trials that are over before any is compared with their median."""


@dataclass
class Claimed:
    """A trial that this process alone works on.

    Attributes:
        number: of the trial, counted from 0.
        values: of the settings that are drawn.
        resumed: whether another process began it, and is gone.
    """

    number: int
    values: dict[str, Any]
    resumed: bool
    trial: Any
    lock: int

    def report(self, value: float, step: int) -> bool:
        """Report a validation, more for better, and return whether the trial is hopeless."""
        if len(self.trial.study.directions) > 1:
            return False  # who is behind cannot be told before latency and size are measured
        seen = self.trial.study.trials[self.number].intermediate_values
        if step not in seen:
            self.trial.report(value, step)
        return bool(self.trial.should_prune())

    def release(self) -> None:
        """Let others have the trial."""
        os.close(self.lock)


class Study:
    """The trials of a sweep.

    Args:
        folder: of the study; made where missing.
        sweep: what is asked for.

    Raises:
        UserError: if the folder cannot be written, or holds the study of another sweep.
    """

    def __init__(self, folder: Path, sweep: Sweep) -> None:
        self.folder = folder
        self.sweep = sweep
        with disk_errors_as_user_errors(folder, "be made"):
            folder.mkdir(parents=True, exist_ok=True)
            with self._alone():
                self.study = _opened(folder / JOURNAL, sweep)
                self._check()

    def next(self) -> Claimed | None:
        """Return a trial to run: one whose process is gone, else a new one; ``None`` where there are enough."""
        from optuna.trial import Trial, TrialState

        with self._alone():
            trials = self.study.get_trials(deepcopy=False)
            for found in trials:
                if found.state == TrialState.RUNNING and (lock := self._claimed(found.number)) is not None:
                    if self.study.get_trials(deepcopy=False)[found.number].state == TrialState.RUNNING:
                        trial = Trial(self.study, found._trial_id)
                        return Claimed(found.number, dict(found.params), True, trial, lock)
                    os.close(lock)  # another process has completed it since it was read
            if len(trials) >= self.sweep.trials:
                return None
            self.study.sampler = _sampler(self.sweep, len(trials))
            if self.sweep.sampler == "grid":
                self.study.enqueue_trial(_combination(self.sweep.space, len(trials)))
            trial = self.study.ask(_distributions(self.sweep.space))
            lock = self._claimed(trial.number)
            assert lock is not None
            return Claimed(trial.number, dict(trial.params), False, trial, lock)

    def complete(self, claimed: Claimed, values: Sequence[float], folder: Path) -> None:
        """Say what a trial came to: metric, more for better; with ``goal="pareto"`` latency and bytes as well."""
        claimed.trial.set_user_attr("folder", str(folder))
        self.study.tell(claimed.number, list(values) if self.sweep.goal == "pareto" else values[0])
        claimed.release()

    def drop(self, claimed: Claimed, why: str, *, hopeless: bool) -> None:
        """Say that a trial came to nothing, and why."""
        from optuna.trial import TrialState

        claimed.trial.set_user_attr("why", why)
        self.study.tell(claimed.number, state=TrialState.PRUNED if hopeless else TrialState.FAIL)
        claimed.release()

    def folders(self) -> list[Path]:
        """Return the run folders of the trials that came to an end."""
        found = (trial.user_attrs.get("folder") for trial in self.study.get_trials(deepcopy=False))
        return [Path(folder) for folder in found if folder]

    def best(self) -> list[int]:
        """Return the numbers of the best trials: one, or all that no other beats."""
        from optuna.trial import TrialState

        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return sorted(trial.number for trial in self.study.best_trials) if done else []

    def counts(self) -> dict[str, int]:
        """Return how many trials are complete, pruned, failed and running."""
        states = [trial.state.name for trial in self.study.get_trials(deepcopy=False)]
        return {
            "complete": states.count("COMPLETE"), "pruned": states.count("PRUNED"), "failed": states.count("FAIL"),
            "running": states.count("RUNNING"),
        }  # fmt: skip

    def _check(self) -> None:
        asked = self.sweep.identity
        there = self.study.user_attrs.get("identity")
        if there is None:
            self.study.set_user_attr("identity", asked)
        elif there != asked:
            raise UserError(
                f"{self.folder}: holds a sweep of other settings; repeat those to resume it, or give another id"
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let no other process ask, or open the study, meanwhile."""
        lock = lock_of(self.folder / "study.lock", wait=True)
        try:
            yield
        finally:
            if lock is not None:
                os.close(lock)

    def _claimed(self, number: int) -> int | None:
        return lock_of(self.folder / f"trial-{number}.lock", wait=False)


def _opened(path: Path, sweep: Sweep) -> Any:
    """Return the study of a journal, mended where a kill has cut its last line short."""
    import optuna

    storage = journal_at(path)
    directions: Any = ["maximize", "minimize", "minimize"] if sweep.goal == "pareto" else ["maximize"]
    stop: Any = optuna.pruners.NopPruner()
    if sweep.stop == "median" and sweep.goal == "metric":
        stop = optuna.pruners.MedianPruner(n_startup_trials=AT_FIRST, n_min_trials=AT_FIRST)
    try:
        return optuna.create_study(
            study_name="sweep", storage=storage, directions=directions, pruner=stop, load_if_exists=True
        )
    except ValueError as error:
        raise UserError(f"{path.parent}: holds a sweep of another goal ({error}); give another id") from error


def _sampler(sweep: Sweep, asked: int) -> Any:
    """Return a sampler whose draws depend on the seed and on how many trials there are, as a resumed sweep's must."""
    from optuna.samplers import RandomSampler, TPESampler

    seed = 1000 * sweep.seed + asked
    return TPESampler(seed=seed) if sweep.sampler == "tpe" else RandomSampler(seed=seed)


def _distributions(space: Space) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    return {
        key: (IntDistribution(int(given.low), int(given.high), log=given.log) if given.whole
              else FloatDistribution(given.low, given.high, log=given.log))
        if isinstance(given, Interval) else CategoricalDistribution(given)
        for key, given in space.items()
    }  # fmt: skip


def _combination(space: Space, number: int) -> Mapping[str, Any]:
    lists = [given for given in space.values() if not isinstance(given, Interval)]
    values = next(itertools.islice(itertools.product(*lists), number, None))
    return dict(zip(space, values, strict=True))
