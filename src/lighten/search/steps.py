"""The steps of one search, in order: each reads what the folder has, so that a stopped one goes on."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L

from lighten.delivery.folders.model import WEIGHTS, save
from lighten.delivery.folders.run import read_json, write_json
from lighten.delivery.measure.scores import describe_task
from lighten.errors import UserError
from lighten.quantization.settings import DYNAMIC, STATIC
from lighten.search.budget import Allotment, hopeless
from lighten.search.choose import (
    Next, Setting, Tried, after_training, base_setting, first_strength, next_setting, sentences,
)  # fmt: skip
from lighten.search.frontier import best_of, frontier_of
from lighten.search.look import look_at
from lighten.search.needs import Budget, Needs
from lighten.search.outcome import keep, outcome, points_of, verdict
from lighten.search.quality import Quality
from lighten.search.result import Result
from lighten.search.splits import Splits
from lighten.search.storage import BEST, LOOK, MADE_BY, Storage
from lighten.search.subject import Subject
from lighten.search.trial import (
    FILE,
    STUDENT,
    HopelessError,
    export_files,
    failure_of,
    read_row,
    run_trial,
    warm_start,
    write_row,
)  # fmt: skip
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
        original = self.state["original"]
        self.needs = self.needs.resolved(
            {name: original[name] for name in ("latency_ms", "bytes", "macs", "parameters")}
        )
        self._write()

    def _at_once(self) -> None:
        """Quantize after training, at once."""
        while True:
            tried = [row for row in self.state["trials"] if row["setting"]["quantize"] in (STATIC, DYNAMIC)]
            done = [row for row in tried if row["state"] != "running"]
            if any(row["state"] == "complete" for row in done):
                return
            running = [row for row in tried if row["state"] == "running"]
            if running:
                self._trial(Next(Setting.from_json(running[0]["setting"]), running[0]["why"]))
                continue
            mode = after_training(None, [row["setting"]["quantize"] for row in done])
            if mode is None:
                return
            setting = Setting(quantize=mode, distil=False, scope="uniform")
            self._trial(Next(setting, f"{mode} int8 after training, at once: a first result"))

    def _look(self) -> dict[str, Any]:
        path = self.storage.folder / LOOK
        if not path.exists():
            begun = time.monotonic()
            self.tell("a look at the network: what can be cut, and what it costs")
            look = look_at(self.subject, self.data, self.splits, self.needs)
            look["seconds"] = round(time.monotonic() - begun, 2)
            self._spend("look", look["seconds"])
            write_json(path, look)
        look = read_json(path, made_by=MADE_BY)
        self.state["look"] = look
        self._write()
        return look

    def _fine_tunes(self, look: Mapping[str, Any]) -> None:
        if "allotment" not in self.state:
            reserve = self._overhead()
            self.state["allotment"] = asdict(
                Allotment.of(self.budget, look["seconds_per_epoch"], self.elapsed, reserve)
            )
        allotment = Allotment(**self.state["allotment"])
        distil = self.subject.task is not None
        base = base_setting(look, self.needs, exclude=look["exclude"], distil=distil)
        first = first_strength(look, base, self.needs, self.state["original"], self._at_once_figures())
        self.state["plan"] = [*sentences(look, base, first, distil=distil), allotment.sentence]
        self._write()
        while True:
            self._check_signals()
            rows = [row for row in self.state["trials"] if row["setting"]["epochs"]]
            running = next((row for row in rows if row["state"] == "running"), None)
            if running is not None:
                self._trial(
                    Next(
                        Setting.from_json(running["setting"]),
                        running["why"],
                        running["warm_from"],
                        running["predicted"],
                    )
                )
                continue
            if sum(row["state"] == "failed" for row in rows) >= MOST_FAILURES:
                return
            found = next_setting(
                base, [self._tried(row) for row in rows], self.needs, epochs=(allotment.first, allotment.next),
                first=first, prunable=bool(look["prunable"]),
            )  # fmt: skip
            if found is None:
                return
            spent = sum(row["epochs"] or 0.0 for row in rows)
            epochs = allotment.fits(found.setting.epochs, spent, self.elapsed, self._overhead(), self._pace(look))
            if epochs is None:
                self.state["plan"] = [*self.state["plan"], "the budget is used up"]
                return
            self._trial(Next(replace(found.setting, epochs=epochs), found.why, found.warm_from, found.predicted))

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
        broken = self.needs.met_by(chosen.figures, found.bound)
        self.state.update(verdict(self.state, chosen, found, self.needs, broken))
        self.state["state"] = "not met" if broken else "met"
        self._write()
        return self._result()

    # One trial

    def _trial(self, chosen: Next) -> None:
        storage = self.storage
        row = next((row for row in self.state["trials"] if row["state"] == "running"), None)
        if row is None:
            number = len(self.state["trials"])
            row = {
                "number": number, "state": "running", "setting": chosen.setting.as_json(),
                "predicted": dict(chosen.predicted) if chosen.predicted else None, "measured": None, "seconds": None,
                "epochs": None, "warm_from": chosen.warm_from, "why": chosen.why, "dropped": None,
                "folder": f"trials/{number}",
            }  # fmt: skip
            self.state["trials"].append(row)
            self._write()
        number, folder = row["number"], storage.trial_folder(row["number"])
        storage.ask(row["setting"])
        finished = read_row(folder)
        if finished is None:
            self.tell(f"trial {number}: {row['why']}")
            finished = self._tried_out(row, chosen, folder)
            write_row(folder, finished)
        row.update(finished)
        storage.tell(row)
        if row["state"] == "complete":
            self._keep_best()
        for stage, seconds in (row.get("stages") or {}).items():
            self._spend(stage, seconds)
        self._write()
        self.tell(f"trial {number}: {outcome(row)}")
        self._check_signals()

    def _tried_out(self, row: Mapping[str, Any], chosen: Next, folder: Path) -> dict[str, Any]:
        begun = time.monotonic()
        setting = Setting.from_json(row["setting"])
        given: dict[str, Any] = {"state": "complete", "dropped": None}
        try:
            warm = (
                None
                if row["warm_from"] is None
                else warm_start(self.subject, self.storage.trial_folder(row["warm_from"]))
            )
            found = run_trial(
                setting, subject=self.subject, quality=self.quality, data=self.data, splits=self.splits, folder=folder,
                needs=self.needs, original=self.original_file, warm=warm, on_epoch=self._on_epoch(setting),
                trainer=self.trainer, seed=self.seed + row["number"],
            )  # fmt: skip
            given |= {"measured": found["measured"], "epochs": found["epochs"], "stages": found["seconds"]}
        except HopelessError as error:
            given |= {"state": "pruned", "dropped": str(error), "epochs": self._epochs_done}
        except (Exception, AssertionError) as error:  # a network may refuse anything
            given |= {"state": "failed", "dropped": failure_of(error), "epochs": 0.0}
        return {**given, "seconds": round(time.monotonic() - begun, 2)}

    def _on_epoch(self, setting: Setting) -> Callable[[int, float, L.Trainer], str | None]:
        values: list[float] = []
        begun = time.monotonic()
        self._epochs_done = 0.0

        def ask(done: int, value: float, trainer: L.Trainer) -> str | None:
            values.append(self.quality.drop(self.state["original"]["guide"], value))
            self._epochs_done = float(done)
            self.storage.report(value, done)
            left = None if self.budget.seconds is None else self.budget.seconds - self.elapsed
            total = max(1, round(setting.epochs))
            pace = (time.monotonic() - begun) / len(values)
            return hopeless(values, done, total, self.needs, left=left, pace=pace)

        return ask

    # What it has come to

    def _tried(self, row: Mapping[str, Any]) -> Tried:
        point = next((point for point in points_of(self.state) if point.trial == row["number"]), None)
        setting = Setting.from_json(row["setting"])
        if point is None:
            return Tried(row["number"], setting, float("inf"), {})
        return Tried(row["number"], setting, point.reckoned, point.figures)

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

    def _keep_best(self) -> None:
        points = points_of(self.state)
        self.state["frontier"] = [point.trial for point in frontier_of(points, self.needs)]
        best, nearest = best_of(points, self.needs)
        keep(self.storage.folder, best or nearest)
        self.state["chosen"] = (best or nearest).trial

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
