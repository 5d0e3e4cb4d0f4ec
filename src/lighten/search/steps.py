"""The steps of one search, in order: each reads what the folder has, so that a stopped one goes on."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L

from lighten.delivery.folders.model import WEIGHTS, save
from lighten.delivery.folders.run import read_json, write_json
from lighten.delivery.measure.scores import describe_task
from lighten.errors import UserError
from lighten.search.budget import Allotment, check_time
from lighten.search.choose import Next, Setting, Tried, after_training, aim_of, base_setting, next_setting, sentences
from lighten.search.foresight import Foresight
from lighten.search.frontier import best_of, frontier_of
from lighten.search.look import kind_of, look_at
from lighten.search.needs import FIGURES, Budget, Needs, percent
from lighten.search.outcome import keep, outcome, points_of, verdict
from lighten.search.quality import Quality
from lighten.search.result import Result
from lighten.search.splits import Splits
from lighten.search.storage import BEST, LOOK, MADE_BY, Storage
from lighten.search.subject import Subject
from lighten.search.trial import FILE, STUDENT, export_files, read_row
from lighten.search.tries import Tries, new_row
from lighten.training import signals
from lighten.training.signals import Preempted
from lighten.utils.targets import TARGETS

ORIGINAL = "original"
MOST_FAILURES = 2
"""Fine-tunes that may fail before the search leaves it at what it has."""


class Search:
    """One search.

    Args:
        subject: what is compressed.
        quality: how good files are.
        data: is trained on.
        splits: of it.
        needs: as given.
        budget: what it may take.
        seed: of fits.
        trainer: further arguments of Lightning's Trainer.
        tell: is told each step.
    """

    def __init__(
        self, subject: Subject, quality: Quality, data: L.LightningDataModule, splits: Splits, needs: Needs,
        budget: Budget, *, seed: int, trainer: Mapping[str, Any], tell: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.subject, self.quality, self.data, self.splits = subject, quality, data, splits
        self.needs, self.budget, self.seed, self.trainer, self.tell = needs, budget, seed, trainer, tell
        self._storage: Storage | None = None
        self._begun, self._before = time.monotonic(), 0.0

    @property
    def _tries(self) -> Tries:
        return Tries(
            self.subject, self.quality, self.data, self.splits, self.storage, self.original_file,
            self.state["original"]["guide"], curves=self._curves, trainer=self.trainer, seed=self.seed,
        )  # fmt: skip

    @property
    def _curves(self) -> dict[str, list[tuple[float, float]]] | None:
        groups = self.state.get("look", {}).get("groups")
        return {group["name"]: group["curve"] for group in groups} if groups else None

    @property
    def storage(self) -> Storage:
        """Where all of it is kept, while the search runs."""
        assert self._storage is not None
        return self._storage

    @property
    def state(self) -> dict[str, Any]:
        """The content of ``search.json``."""
        return self.storage.state

    @property
    def elapsed(self) -> float:
        """Seconds that the search has taken, those before a stop included."""
        return self._before + time.monotonic() - self._begun

    def run(self, storage: Storage) -> Result:
        """Search, choose, confirm."""
        self._storage, self._begun = storage, time.monotonic()
        self._before = float(self.state.get("elapsed", 0.0))
        if self.state.get("state") in ("met", "not met"):
            self.tell(f"{storage.folder}: this search is done, its result is returned")
            return self._result()
        self._describe()
        self._original()
        self._at_once()
        look = self._look()
        if not any(row["setting"]["epochs"] for row in self.state["trials"]):
            self._at_once(look["exclude"])
        self._fine_tunes(look)
        return self._finish()

    def stop(self) -> None:
        """Leave what there is, after a signal or Ctrl-C; the same call goes on from here."""
        if self._storage is not None:
            self.state["state"] = "stopped"
            self._write()
            chosen = self.state.get("chosen")
            best = self.storage.folder / BEST
            where = f"the best so far is trial {chosen} in {best}" if chosen is not None else "no trial is done yet"
            self.tell(f"stopped: {where}; the same call with folder={str(self.storage.folder)!r} goes on")

    def _describe(self) -> None:
        task = self.subject.task
        defaults: dict[str, Any] = {
            "plan": [], "trials": [], "frontier": [], "chosen": None, "confirmation": None, "met": None,
            "reasons": [], "nearest": None, "help": [],
            "seconds": {"look": 0.0, "search": 0.0, "fit": 0.0, "export": 0.0, "measure": 0.0, "confirm": 0.0},
        }  # fmt: skip
        for name, value in defaults.items():
            self.state.setdefault(name, value)
        self.state.update({
            "state": "running", "budget": asdict(self.budget),
            "task": describe_task(task) if task is not None else None,
            "metric": self.quality.metric, "lower_is_better": self.quality.lower_is_better,
            "splits": self.splits.samples,
        })  # fmt: skip
        self._write()

    def _write(self) -> None:
        self.state["elapsed"] = round(self.elapsed, 3)
        self.state["needs"] = {**asdict(self.needs), "relative": dict(self.needs.relative), "text": str(self.needs)}
        self.storage.write()

    def _spend(self, stage: str, seconds: float) -> None:
        self.state["seconds"][stage] = round(self.state["seconds"].get(stage, 0.0) + seconds, 3)

    def _check_signals(self) -> None:
        signum = signals.received()
        if signum is not None:
            raise Preempted(signum, f"between two steps, {self.storage.folder} has all that is done")

    # The steps

    def _original(self) -> None:
        """Save the original, export it in float and measure it; resolve needs that are shares of it."""
        folder = self.storage.folder
        self.original_file = folder / f"{ORIGINAL}{TARGETS[self.needs.runtime].suffix}"
        if "original" not in self.state:
            begun = time.monotonic()
            self.tell("the float original is exported and measured")
            if not (folder / ORIGINAL / WEIGHTS).exists():
                save(self.subject.network, folder / ORIGINAL, **self.subject.about)
            export_files(self.subject, self.subject.network, folder / f"{ORIGINAL}.onnx", self.needs.runtime)
            exported = time.monotonic()
            figures = self.quality.original(self.original_file, self.splits, self.needs)
            self.state["original"] = {**figures, "folder": ORIGINAL, "file": f"{ORIGINAL}.onnx"}
            self._spend("export", exported - begun)
            self._spend("measure", time.monotonic() - exported)
            check_time(self.budget, time.monotonic() - begun)
        original = self.state["original"]
        self.needs = self.needs.resolved({name: original[name] for name in FIGURES})
        self._write()

    def _at_once(self, exclude: Sequence[str] | None = None) -> None:
        """Quantize after training, at once, as long as it is not good enough and there is another way."""
        kind = kind_of(self.subject.network)
        while True:
            rows = [row for row in self.state["trials"] if not row["setting"]["epochs"]]
            done = [self._tried(row) for row in rows if row["state"] == "complete"]
            if any(not self.needs.met_by({**one.figures, **self.needs.limits}, one.drop) for one in done):
                return
            running = next((row for row in rows if row["state"] == "running"), None)
            settings = [Setting.from_json(row["setting"]) for row in rows]
            found = after_training(kind, settings, exclude) if running is None else _open(running)
            if found is None:
                return
            self._trial(found)

    def _look(self) -> dict[str, Any]:
        path = self.storage.folder / LOOK
        if not path.exists():
            begun = time.monotonic()
            self.tell("a look at the network: what can be cut, and what it costs")
            look = look_at(self.subject, self.data, self.splits, self.needs, files=self._files())
            look["seconds"] = round(time.monotonic() - begun, 2)
            self._spend("look", look["seconds"])
            write_json(path, look)
        look = read_json(path, made_by=MADE_BY)
        self.state["look"] = look
        self._write()
        return look

    def _files(self) -> dict[int, Path]:
        """Return the files that are there already, by bits."""
        name = f"student{TARGETS[self.needs.runtime].suffix}"
        rows = [row for row in self.state["trials"] if row["state"] == "complete" and not row["setting"]["amount"]]
        files = {32: self.original_file}
        return files | ({8: self.storage.folder / rows[0]["folder"] / name} if rows else {})

    def _fine_tunes(self, look: Mapping[str, Any]) -> None:
        if "allotment" not in self.state:
            pace, steps = look["seconds_per_epoch"], look["steps_per_epoch"]
            shares = Allotment.of(self.budget, pace, self.elapsed, self._overhead(), steps=steps)
            self.state["allotment"] = asdict(shares)
        allotment = Allotment(**self.state["allotment"])
        distil = self.subject.task is not None
        base = base_setting(look, self.needs, distil=distil)
        base = replace(base, epochs=allotment.first)
        aim, why = aim_of(self._foresight(look, []), base, self.needs)
        self.state["plan"] = [*sentences(look, base, aim, why=why), allotment.sentence]
        self._write()
        while True:
            self._check_signals()
            rows = [row for row in self.state["trials"] if row["setting"]["epochs"]]
            running = next((row for row in rows if row["state"] == "running"), None)
            if running is not None:
                self._trial(_open(running))
                continue
            if sum(row["state"] == "failed" for row in rows) >= MOST_FAILURES:
                return
            foresight = self._foresight(look, rows)
            aim, why = aim_of(foresight, base, self.needs)
            found = next_setting(
                base, [self._tried(row) for row in rows], self.needs, aim=aim, why=why, again=allotment.next,
                prunable=look["prunable"],
            )  # fmt: skip
            if found is None:
                return
            spent = sum(row["epochs"] or 0.0 for row in rows)
            epochs = allotment.fits(found.setting.epochs, spent, self.elapsed, self._overhead(), self._pace(look))
            if epochs is None:
                over = "the budget is used up"
                if not rows:
                    over = (
                        f"the budget leaves no time for a fine-tune, which takes {allotment.least:g} epochs of "
                        f"{look['steps_per_epoch']} steps: give more"
                    )
                    self.tell(over)
                self.state["plan"] = [*self.state["plan"], over]
                return
            setting = replace(found.setting, epochs=epochs)
            self._trial(replace(found, setting=setting, predicted=foresight.predicted(setting)))

    def _finish(self) -> Result:
        points = points_of(self.state)
        if not points:
            why = "; ".join(f"trial {row['number']}: {row['dropped']}" for row in self.state["trials"])
            raise UserError(f"no trial came to an end ({why})")
        self._check_signals()
        best, nearest = best_of(points, self.needs)
        chosen = best or nearest
        keep(self.storage.folder, chosen)
        self.state["chosen"] = chosen.trial
        begun = time.monotonic()
        self.tell(f"trial {chosen.trial} is confirmed on {self.splits.samples['confirm']} samples that chose nothing")
        folder = self.storage.folder
        file = folder / BEST / f"student{TARGETS[self.needs.runtime].suffix}"
        found = self.quality.confirm(folder / BEST, self.original_file, file, self.splits.confirm, self.needs)
        self._spend("confirm", time.monotonic() - begun)
        called = f"drop {percent(found.drop)} and its {found.confidence:.0%} bound"
        broken = self.needs.met_by(chosen.figures, found.bound, called=called)
        self.state.update(verdict(self.state, chosen, found, self.needs, broken))
        self.state["state"] = "not met" if broken else "met"
        self._write()
        return self._result()

    def _trial(self, chosen: Next) -> None:
        """Try what was chosen, or go on with the trial that is open."""
        rows = self.state["trials"]
        row = next((row for row in rows if row["state"] == "running"), None)
        if row is None:
            row = new_row(len(rows), chosen)
            rows.append(row)
            self._write()
        self.storage.ask(row["number"], row["setting"])
        if read_row(self.storage.trial_folder(row["number"])) is None:
            self.tell(f"trial {row['number']}: {row['why']}")
        row.update(self._tries.tried(row, self.needs, left=self._left))
        self.storage.tell(row)
        if row["state"] == "complete":
            points = points_of(self.state)
            self.state["frontier"] = [point.trial for point in frontier_of(points, self.needs)]
            best, nearest = best_of(points, self.needs)
            keep(self.storage.folder, best or nearest)
            self.state["chosen"] = (best or nearest).trial
        for stage, seconds in (row.get("stages") or {}).items():
            self._spend(stage, seconds)
        self._write()
        self.tell(f"trial {row['number']}: {outcome(row)}")
        self._check_signals()

    def _left(self) -> float | None:
        """Return the seconds of the budget that are left, where it is one of time."""
        return None if self.budget.seconds is None else self.budget.seconds - self.elapsed

    # What it has come to

    def _tried(self, row: Mapping[str, Any]) -> Tried:
        setting, found = Setting.from_json(row["setting"]), row["measured"]
        if found is None:
            return Tried(row["number"], setting, math.inf, {})
        return Tried(row["number"], setting, found["expected"], {name: found[name] for name in FIGURES})

    def _foresight(self, look: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Foresight:
        at_once = next((p.figures for p in points_of(self.state) if not self.state["trials"][p.trial]["epochs"]), None)
        drops = {row["number"]: row["measured"]["drop"] for row in rows if row["measured"]}
        return Foresight(look, self.state["original"], at_once, [self._tried(row) for row in rows], drops)

    def _overhead(self) -> float:
        """Return the seconds that a trial takes beside its fit, by those before."""
        taken = [
            sum(s for stage, s in row["stages"].items() if stage != "fit")
            for row in self.state["trials"]
            if row.get("stages")
        ]
        return max(taken, default=10.0)

    def _pace(self, look: Mapping[str, Any]) -> float:
        """Return seconds per epoch, by the fits before."""
        fits = [
            row["stages"]["fit"] / row["epochs"]
            for row in self.state["trials"]
            if row["state"] == "complete" and row["epochs"] and row["stages"]["fit"] > 1.0
        ]
        return fits[-1] if fits else float(look["seconds_per_epoch"])

    def _result(self) -> Result:
        folder = self.storage.folder
        best = folder / BEST
        frontier = [point for point in points_of(self.state) if point.trial in self.state["frontier"]]
        subject = self.subject
        return Result(
            met=bool(self.state["met"]), folder=best / STUDENT, path=best / FILE,
            scores=read_json(best / "scores.json", made_by=MADE_BY),
            reasons=[*self.state["reasons"], *self.state["help"]],
            frontier=frontier, search=self.state, load=lambda: subject.load(best / STUDENT),
        )  # fmt: skip


def _open(row: Mapping[str, Any]) -> Next:
    """Return a trial that a stop has left open."""
    return Next(Setting.from_json(row["setting"]), row["why"], row["warm_from"], row["predicted"])
