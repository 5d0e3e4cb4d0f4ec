"""Publication of a search to W&B: a run a trial, all of them in one group."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lighten.delivery.folders.run import read_json, write_json
from lighten.delivery.report.search_figures import Search, read_search
from lighten.training.wandb_run import WandbRun

SENT = "wandb.json"
"""Which trials W&B has, in the search's folder."""
DONE = ("complete", "pruned", "failed")


def publish_search(folder: Path, *, project: str = "lighten") -> list[int]:
    """Send the trials of a search that have ended and were not sent yet; return their numbers.

    A trial is a run ``trial-N`` of the group ``RECIPE-ID`` (the names of the search's folder and of the one around it):
    its setting is the config, its history the curves, its figures the summary: ``trial/…``, ``predicted/…``,
    ``setting/…``.

    Args:
        folder: of the search.
        project: W&B's project, where ``WANDB_PROJECT`` names none.

    Raises:
        UserError: if ``search.json`` is missing or broken, or W&B does not start.
    """
    search = read_search(folder)
    path = folder / SENT
    sent = set(read_json(path, made_by="lighten compress").get("trials", [])) if path.exists() else set()
    new = [trial for trial in search.trials if trial.get("state") in DONE and trial["number"] not in sent]
    group = f"{folder.absolute().parent.name}-{folder.absolute().name}"
    for trial in new:
        _send(search, trial, folder / str(trial.get("folder") or f"trials/{trial['number']}"), group, project)
        sent.add(trial["number"])
        write_json(path, {"project": os.environ.get("WANDB_PROJECT", project), "group": group, "trials": sorted(sent)})
    return [trial["number"] for trial in new]


def figures_of_trial(search: Search, trial: Mapping[str, Any]) -> dict[str, float | str | bool]:
    """Return the figures of a trial by name, as W&B's summary has them."""
    found: dict[str, float | str | bool] = {"trial/state": str(trial.get("state"))}
    found |= {f"trial/{key}": trial[key] for key in ("seconds", "epochs") if trial.get(key) is not None}
    for part, prefix in (("measured", "trial"), ("predicted", "predicted"), ("setting", "setting")):
        values = (trial.get(part) or {}).items()
        found |= {f"{prefix}/{key}": value for key, value in values if isinstance(value, int | float | str)}
    found |= {"trial/frontier": trial["number"] in search.frontier}
    found |= {"trial/chosen": trial["number"] == search.told.get("chosen")}
    return found


def _send(search: Search, trial: Mapping[str, Any], folder: Path, group: str, project: str) -> None:
    config = {**(trial.get("setting") or {}), "why": trial.get("why"), "dropped": trial.get("dropped"),
              "warm_from": trial.get("warm_from"), "needs": dict(search.needs)}  # fmt: skip
    run = WandbRun(folder, project, config, named=(group, f"trial-{trial['number']}"))
    try:
        run.catch_up()
        run.experiment.summary.update(figures_of_trial(search, trial))
    except BaseException:
        run.finish(1)
        raise
    run.finish()
