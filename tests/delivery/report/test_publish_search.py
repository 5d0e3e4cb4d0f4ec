import json

import pytest
from search_run import make_search, make_trials, write_search

from lighten.delivery.report.publish_search import figures_of_trial, publish_search
from lighten.delivery.report.search_figures import Search
from lighten.training.wandb_log import read_records, rows
from lighten.training.wandb_run import STEP


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)


def search_of(tmp_path, trials, **changes):
    folder = write_search(tmp_path / "auto" / "one", trials=trials, **changes)
    for trial in trials:
        lines = [
            {"step": 10 * n, "epoch": n - 1, "progress": n / 3, "time": 1.0, "train/loss": 1.0 / n} for n in (1, 2, 3)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines if trial["epochs"])
        (folder / trial["folder"] / "history.jsonl").write_text(text)
    return folder


def test_figures_are_named_after_what_they_are():
    found = figures_of_trial(Search(make_search()), make_trials()[4])
    assert found["trial/drop"] == 0.0085
    assert found["predicted/drop"] == 0.0095
    assert found["setting/amount"] == 0.62
    assert (found["trial/frontier"], found["trial/chosen"], found["trial/state"]) == (True, True, "complete")
    assert figures_of_trial(Search(make_search()), make_trials()[6])["trial/state"] == "pruned"


def test_each_trial_is_a_run_of_one_group_with_its_curves_and_figures_and_is_sent_once(tmp_path):
    trials = [make_trials()[n] for n in (0, 4)]
    folder = search_of(tmp_path, trials, frontier=[0, 4])
    assert publish_search(folder) == [0, 4]
    assert publish_search(folder) == []
    for trial in trials:
        place = folder / trial["folder"]
        (log,) = place.glob("wandb/offline-run-*/*.wandb")
        assert log.name == f"run-auto-one-trial-{trial['number']}.wandb"
        records = list(read_records(log))
        (run,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
        assert (run.run_group, run.display_name, run.project) == ("auto-one", f"trial-{trial['number']}", "lighten")
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert config["amount"] == trial["setting"]["amount"]
        assert config["why"] == trial["why"]
        summary = {u.key: json.loads(u.value_json) for r in records for u in r.summary.update if u.key}
        expected = figures_of_trial(Search(make_search(trials=trials)), trial)
        assert {key: summary[key] for key in expected} == expected
        curve = [(row[STEP], row["train/loss"]) for row in rows(place, log.stem.removeprefix("run-"))]
        assert curve == ([(9, 1.0), (19, 0.5), (29, pytest.approx(1 / 3))] if trial["epochs"] else [])


def test_a_trial_that_is_still_at_work_waits(tmp_path):
    running = make_trials()[4] | {"state": "running", "measured": None}
    folder = search_of(tmp_path, [running], frontier=[], chosen=None)
    assert publish_search(folder) == []
    assert not list(folder.glob("trials/*/wandb"))
