import csv
import sys

import pytest

from lighten.errors import UserError
from lighten.training.fit import make_trainer
from lighten.training.loggers import make_logger
from lighten.training.record import OWN_KEYS, read


@pytest.fixture
def run(tmp_path, plain, batches):
    def fit(name: str):
        folder = tmp_path / "recipe" / "run-1"
        logger = make_logger(name, folder, project="tests", config={"seed": 3, "optimizer": {"lr": 0.1}})
        settings = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}
        make_trainer(folder=folder, stage="student", settings=settings, logger=logger).fit(plain(), batches, batches)
        return folder, logger

    return fit


def test_csv(run) -> None:
    folder, _ = run("csv")
    (path,) = (folder / "csv").rglob("metrics.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    lines = read(folder / "history.jsonl")
    for name, count in (("train/loss", 3), ("student/accuracy", 1)):
        told = [(line["step"] - 1, pytest.approx(line[name])) for line in lines if name in line]
        assert [(int(row["step"]), float(row[name])) for row in rows if row[name]] == told
        assert len(told) == count


def test_tensorboard(run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = run("tensorboard")
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    lines = read(folder / "history.jsonl")
    names = {name for line in lines for name in line} - set(OWN_KEYS)
    assert names == {"train/loss", "student/accuracy"} == set(events.Tags()["scalars"]) - {"epoch", "hp_metric"}
    for name in names:
        told = [(line["step"] - 1, pytest.approx(line[name])) for line in lines if name in line]
        assert [(event.step, event.value) for event in events.Scalars(name)] == told


def test_wandb_offline(run, monkeypatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder, logger = run("wandb")
    try:
        experiment = logger.experiment
        assert experiment.settings._offline
        assert (experiment.project, experiment.name, experiment.id) == ("tests", "run-1", "recipe-run-1")
        assert experiment.config["optimizer"] == {"lr": 0.1}
        assert experiment.summary["trainer/global_step"] == 2
        assert "train/loss" in dict(experiment.summary)
    finally:
        wandb.finish()
    (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    assert path.stat().st_size > 0


def test_none_and_a_typo(tmp_path) -> None:
    assert make_logger("none", tmp_path) is False
    with pytest.raises(UserError, match="did you mean 'wandb'"):
        make_logger("wanbd", tmp_path)


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_missing_package_is_told_with_the_way_to_install_it(tmp_path, monkeypatch, name) -> None:
    from lightning.fabric.loggers import tensorboard
    from lightning.pytorch.loggers import wandb

    for module, flag in (
        (wandb, "_WANDB_AVAILABLE"),
        (tensorboard, "_TENSORBOARD_AVAILABLE"),
        (tensorboard, "_TENSORBOARDX_AVAILABLE"),
    ):
        monkeypatch.setattr(module, flag, False)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"pip install {name}"):
        make_logger(name, tmp_path)
