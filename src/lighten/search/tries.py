"""Trials of a search: each is run once, or taken up again, and ends as a row of ``search.json``."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L

from lighten.pruning.damage import DamageCurve
from lighten.search.budget import hopeless
from lighten.search.choose import Next, Setting
from lighten.search.needs import Needs
from lighten.search.quality import Quality
from lighten.search.splits import Splits
from lighten.search.storage import TRIALS, Storage
from lighten.search.subject import Subject
from lighten.search.trial import HopelessError, OnEpoch, failure_of, read_row, run_trial, warm_start, write_row
from lighten.utils.files import DiskError

SAME = 0.005
"""Shares that differ by less are the same: widths are whole numbers."""


def new_row(number: int, chosen: Next) -> dict[str, Any]:
    """Return the row of a trial that begins."""
    return {
        "number": number, "state": "running", "setting": chosen.setting.as_json(),
        "predicted": dict(chosen.predicted) if chosen.predicted else None, "measured": None, "seconds": None,
        "epochs": None, "warm_from": chosen.warm_from, "why": chosen.why, "dropped": None,
        "folder": f"{TRIALS}/{number}",
    }  # fmt: skip


class Tries:
    """Runs trials.

    Args:
        subject: what is compressed.
        quality: how good files are.
        data: is trained on.
        splits: of it.
        storage: where trials are kept.
        original: the float original's file.
        guide: the original's metric on the guide part.
        curves: the damage of cuts, by group; ``None`` before the look.
        trainer: further arguments of Lightning's Trainer.
        seed: of the first fit; each trial has its own.
    """

    def __init__(
        self, subject: Subject, quality: Quality, data: L.LightningDataModule, splits: Splits, storage: Storage,
        original: Path, guide: float, *, curves: Mapping[str, DamageCurve] | None, trainer: Mapping[str, Any],
        seed: int,
    ) -> None:  # fmt: skip
        self.subject, self.quality, self.data, self.splits, self.storage = subject, quality, data, splits, storage
        self.original, self.guide, self.curves, self.trainer, self.seed = original, guide, curves, trainer, seed

    def tried(
        self, row: Mapping[str, Any], needs: Needs, *, left: Callable[[], float | None] = lambda: None
    ) -> dict[str, Any]:
        """Return what a trial comes to; one that is finished already is not run again.

        Args:
            row: of the trial.
            needs: under which conditions latency is measured, and what is hopeless.
            left: returns the seconds of the budget that are left, where it is one of time.

        Raises:
            DiskError: if the disk refuses; what else goes wrong is the trial's own failure.
        """
        folder = self.storage.trial_folder(row["number"])
        finished = read_row(folder)
        if finished is None:
            begun = time.monotonic()
            finished = {**self._run(row, needs, folder, left), "seconds": 0.0}
            finished["seconds"] = round(time.monotonic() - begun, 2)
            write_row(folder, finished)
        return finished

    def _run(
        self, row: Mapping[str, Any], needs: Needs, folder: Path, left: Callable[[], float | None]
    ) -> dict[str, Any]:
        setting, before = Setting.from_json(row["setting"]), row["warm_from"]
        try:
            warm = None if before is None else warm_start(self.subject, self.storage.trial_folder(before))
            pruned = before is not None and self._gone(before, setting) > setting.amount - SAME
            found = run_trial(
                setting, subject=self.subject, quality=self.quality, data=self.data, splits=self.splits, folder=folder,
                needs=needs, original=self.original, warm=warm, pruned=pruned, curves=self.curves,
                on_epoch=self._watch(row, setting, needs, left), trainer=self.trainer, seed=self.seed + row["number"],
            )  # fmt: skip
        except HopelessError as error:
            done = max(self.storage.reported(row["number"]), default=0)
            return {"state": "pruned", "dropped": str(error), "epochs": float(done)}
        except DiskError:
            raise
        except Exception as error:  # a network may refuse anything
            return {"state": "failed", "dropped": failure_of(error), "epochs": 0.0}
        return {
            "state": "complete", "dropped": None, "measured": found["measured"], "epochs": found["epochs"],
            "stages": {stage: round(seconds, 3) for stage, seconds in found["seconds"].items()},
        }  # fmt: skip

    def _gone(self, number: int, setting: Setting) -> float:
        """Return what share of a setting's target a finished trial has pruned, by what was asked and by its figures."""
        row, original = self.storage.trials[number], self.storage.state["original"]
        asked = row["setting"]["amount"] if row["setting"]["target"] == setting.target else 0.0
        return max(float(asked), 1.0 - row["measured"][setting.target] / original[setting.target])

    def _watch(
        self, row: Mapping[str, Any], setting: Setting, needs: Needs, left: Callable[[], float | None]
    ) -> OnEpoch:
        number, total = row["number"], max(1, round(setting.epochs))

        def ask(done: int, value: float, seconds: float) -> str | None:
            self.storage.report(number, self.quality.drop(self.guide, value), done)
            reported = self.storage.reported(number)
            drops = [reported[step] for step in sorted(reported) if step <= done]
            return hopeless(drops, done, total, needs, left=left(), pace=seconds)

        return ask
