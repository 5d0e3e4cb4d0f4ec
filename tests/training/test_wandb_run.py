import json
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from google.protobuf import text_format
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lighten import DistillationModule, Prune, Quantize
from lighten.delivery.report.panels import SECTIONS
from lighten.errors import UserError
from lighten.training.checkpoint import latest_good
from lighten.training.fit import make_trainer
from lighten.training.loggers import ending, make_logger
from lighten.training.optimizer import OptimizerSettings
from lighten.training.order import OrderedLoader
from lighten.training.progress import CLOCKS
from lighten.training.record import OWN_KEYS, read
from lighten.training.signals import Preempted
from lighten.training.wandb_log import read_records, rows
from lighten.training.wandb_run import STEP, run_id

BLOCK = 1 << 15


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    assert wandb.run is None, "a run was left open"


def logs(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"))


def sent(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Return what W&B has of each log point: its step, and metrics by name."""
    return [
        (row[STEP], {k: v for k, v in row.items() if k[0] != "_" and k not in (STEP, "epoch") and k not in CLOCKS})
        for row in rows(folder, run_id(folder))
    ]


def written(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Return the same of the history."""
    lines = read(folder / "history.jsonl")
    return [(line["step"] - 1, {k: v for k, v in line.items() if k not in (*OWN_KEYS, *CLOCKS)}) for line in lines]


def net(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(24, 3),
        )  # fmt: skip


class Rows(TensorDataset):
    """Makes batches of the places that an OrderedLoader asks for, ``(epoch, sample)``."""

    def __getitems__(self, places):
        return self[[sample for _, sample in places]]


class StopAt(L.Callback):
    """Asks the fit to stop, as a scheduler does, after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            from lighten.training import signals

            signals._seen.append(signals.signal.SIGTERM)


def fit(folder: Path, *, name: str = "wandb", stop: int = 0, again: str = "same", **settings) -> None:
    """Distil, prune and quantize for two epochs of eight steps, from the last checkpoint on."""
    from lighten.training import signals

    draw = torch.Generator().manual_seed(5)
    images = torch.randn(32, 1, 4, 4, generator=draw)
    samples = images, (images.mean((1, 2, 3)) * 20).long() % 3
    data, judged = OrderedLoader(Rows(*samples), batch_size=4, seed=0), DataLoader(TensorDataset(*samples), 4)
    given = {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 2, "gradient_clip_val": 1.0, **settings}
    module = DistillationModule(net(2), net(1), optimizer=OptimizerSettings("sgd", lr=0.05))
    logger = make_logger(name, folder, config={"seed": 3, "optimizer": {"lr": 0.1}, "resume": again})
    callbacks = [StopAt(stop), Prune(0.5, begin=0.2, end=0.6, live=True), Quantize(begin=0.7)]
    signals._seen.clear()
    with ending(logger):
        trainer = make_trainer(
            folder=folder, stage="student", settings={**given, "enable_progress_bar": False}, logger=logger,
            callbacks=callbacks,
        )  # fmt: skip
        resumed = latest_good(folder / "checkpoints")
        trainer.fit(module, data, judged, ckpt_path=str(resumed) if resumed else None, weights_only=True)
    signals._seen.clear()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing has stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        folder = tmp_path_factory.mktemp("whole") / "recipe" / "one"
        fit(folder)
    return folder


def test_each_line_of_the_history_is_one_row_with_the_same_values(whole) -> None:
    assert sent(whole) == written(whole)
    assert [row["_step"] for row in rows(whole, "recipe-one")] == list(range(len(written(whole))))


def test_what_is_logged_has_the_names_that_panels_are_made_of(whole) -> None:
    names = {name for _, metrics in sent(whole) for name in metrics}
    of = {
        family: {n.partition("/")[2] for n in names if n.startswith(f"{family}/")} for family in ("teacher", "student")
    }
    assert of["teacher"] == of["student"] >= {"accuracy", "macro_f1", "loss"}
    assert names >= {
        "gap/accuracy",
        "gap/macro_f1",
        "gap/loss",
        "gap/retention",
        "distil/share/soft_labels",
        "train/loss",
    }
    assert names >= {"prune/amount", "prune/sparsity", "prune/kept/0", "prune/kept/3", "quantize/enabled"}
    assert names >= {"quantize/low/0.input", "quantize/high/0.input"}


def test_the_dashboard_shows_what_is_logged(whole) -> None:
    names = {name for row in rows(whole, run_id(whole)) for name in row}
    for panel in [panel for panels in SECTIONS.values() for panel in panels]:
        for shown in panel.metrics:
            if panel.kind == "lines":
                assert shown in names
            elif panel.kind == "family" and not shown.startswith("system/"):
                assert any(name.startswith(shown) for name in names), shown


def test_groups_are_told_when_they_change_and_ranges_at_an_epochs_end(whole) -> None:
    kept = [(step, metrics["prune/kept/0"]) for step, metrics in sent(whole) if "prune/kept/0" in metrics]
    assert [share for _, share in kept] == sorted((share for _, share in kept), reverse=True)
    assert (len(kept), kept[-1]) == (7, (9, 0.5))  # steps 3 to 10 of 16, the last at 0.6
    assert [step for step, metrics in sent(whole) if "quantize/low/0.input" in metrics] == [12, 15]


def test_wandbs_own_reader_finds_the_same_records(whole, monkeypatch) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.delenv("WANDB_SILENT")
    (log,) = logs(whole)
    command = [sys.executable, "-m", "wandb", "leet", "inspect", str(log)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    theirs = [text_format.Parse(part.partition("\n")[2], Record()) for part in text.split("# record ")[1:]]
    assert theirs == list(read_records(log))
    history = [record for record in theirs if record.WhichOneof("record_type") == "history"]
    assert len(history) == len(written(whole))


def test_the_axis_is_defined_for_every_name_and_the_config_is_the_recipe(whole) -> None:
    (log,) = logs(whole)
    records = list(read_records(log))
    metrics = [r.metric for r in records if r.WhichOneof("record_type") == "metric"]
    globs = {m.glob_name: m.step_metric for m in metrics if m.glob_name}
    assert globs == {f"{n}/*": STEP for n in ("train", "teacher", "student", "gap", "distil", "prune", "quantize")} | {
        "*": STEP
    }
    run = next(r.run for r in records if r.WhichOneof("record_type") == "run")
    config = {u.key: json.loads(u.value_json) for u in run.config.update if u.key != "_wandb"}
    assert config == {"seed": 3, "optimizer": {"lr": 0.1}, "resume": "same"}
    assert (run.project, run.run_id, run.display_name, run.run_group) == ("lighten", "recipe-one", "one", "recipe")
    later = [r.config for r in records if r.WhichOneof("record_type") == "config"]
    assert not [u for c in later for u in c.update if (u.key or u.nested_key[0]) != "_wandb"]


def test_a_preempted_run_goes_on_as_one(tmp_path, whole) -> None:
    folder = tmp_path / "recipe" / "one"
    with pytest.raises(Preempted):
        fit(folder, stop=5)
    assert len(sent(folder)) == len(written(folder)) > 0
    fit(folder)
    assert len(logs(folder)) == 2
    assert sent(folder) == written(folder) == written(whole)
    assert [row["_step"] for row in rows(folder, "recipe-one")] == list(range(len(written(whole))))
    ended = [
        r for log in logs(folder) for r in read_records(log) if r.WhichOneof("record_type") in ("preempting", "exit")
    ]
    assert [(r.WhichOneof("record_type"), r.exit.exit_code) for r in ended] == [
        ("preempting", 0), ("exit", 143), ("exit", 0),
    ]  # fmt: skip


def test_steps_that_are_done_again_are_not_sent_again(tmp_path, whole) -> None:
    folder = tmp_path / "recipe" / "one"
    fit(folder)
    for path in (folder / "checkpoints").glob("*epoch=001*"):
        path.unlink()  # as if it had been killed in the second epoch
    fit(folder)
    assert sent(folder) == written(folder) == written(whole)


def test_with_other_settings_they_are(tmp_path) -> None:
    folder = tmp_path / "recipe" / "one"
    fit(folder)
    for path in (folder / "checkpoints").glob("*epoch=001*"):
        path.unlink()
    first = len(written(folder))
    fit(folder, again="changed")
    assert len(sent(folder)) == first + len([step for step, _ in written(folder) if step >= 8])


def test_gradient_accumulation_keeps_the_steps_of_both_alike(tmp_path) -> None:
    folder = tmp_path / "recipe" / "one"
    with pytest.raises(Preempted):
        fit(folder, stop=3, accumulate_grad_batches=2, log_every_n_steps=1)
    fit(folder, accumulate_grad_batches=2, log_every_n_steps=1)
    assert sent(folder) == written(folder)
    assert [step for step, metrics in sent(folder) if "train/loss" in metrics] == list(range(8))


@pytest.mark.parametrize("name", ["csv", "tensorboard"])
def test_other_loggers_carry_the_same_names(tmp_path, whole, name) -> None:
    folder = tmp_path / "recipe" / "one"
    fit(folder, name=name)
    if name == "csv":
        (path,) = folder.rglob("metrics.csv")
        found = set(path.read_text().splitlines()[0].split(",")) - {"step"}
    else:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder / "tensorboard"))
        events.Reload()
        found = set(events.Tags()["scalars"]) - {"hp_metric"}
    assert found == {name for _, metrics in sent(whole) for name in metrics} | {"epoch", *CLOCKS}


def killed_fit(folder: Path, step: int) -> int:
    script = Path(__file__).with_name("wandb_kill.py")
    own = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_SERVICE", "_WANDB"))}
    environment = {**own, "OMP_NUM_THREADS": "1"}  # a service of its own, which the kill ends too
    command = [sys.executable, str(script), str(folder), str(step)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode


@pytest.mark.slow
def test_after_kill_9_less_than_a_block_is_missing_and_the_next_start_sends_it(tmp_path) -> None:
    folder = tmp_path / "recipe" / "one"
    assert killed_fit(folder, 122) == -9
    told = written(folder)
    assert len(told) == 122 + 4  # an epoch has 30 steps
    (log,) = logs(folder)
    there = sent(folder)
    assert there == told[: len(there)]
    assert len(there) < 120 + 4, "all that the checkpoint has is there: nothing need be sent"
    row = log.stat().st_size / len(there)
    assert 0 < (len(told) - len(there)) * row <= BLOCK + row
    assert killed_fit(folder, -1) == 0
    assert sent(folder) == written(folder)
    assert [step for step, metrics in sent(folder) if "train/loss" in metrics] == list(range(180))


def test_a_full_folder_is_told_and_what_it_lost_is_sent_by_the_next_start(tmp_path, monkeypatch) -> None:
    """W&B itself drops what its disk does not take, and says nothing."""
    import wandb

    folder, real = tmp_path / "recipe" / "one", wandb.teardown

    def fill_up(*arguments):
        real(*arguments)
        (log,) = logs(folder)
        os.truncate(log, log.stat().st_size // 2)

    with monkeypatch.context() as full:
        full.setattr(wandb, "teardown", fill_up)
        with pytest.warns(UserWarning, match=r"holds the run only in part.*history\.jsonl has all") as told:
            fit(folder)
    assert "\n" not in str(told[0].message)
    there = sent(folder)
    assert 0 < len(there) < len(written(folder))
    logger = make_logger("wandb", folder)
    with ending(logger):
        logger.catch_up()  # the fit is done: nothing logs
    assert sent(folder) == written(folder)


@pytest.mark.parametrize("key", [None, "0" * 40], ids=["no key", "no network"])
def test_no_key_and_no_network_are_one_line_each_from_wandb_itself(tmp_path, monkeypatch, key) -> None:
    import wandb

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # where nobody answers
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "5")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    wandb.teardown()
    with pytest.raises(UserError, match=r"^logger=wandb: W&B does not start \(.*WANDB_MODE=offline") as told:
        make_logger("wandb", tmp_path / "r" / "one")
    wandb.teardown()
    assert "\n" not in str(told.value)
    assert key or "No API key" in str(told.value)


def test_without_a_key_or_a_network_one_line_says_so_before_the_fit(tmp_path, monkeypatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "online")
    for failure in (wandb.errors.UsageError("No API key configured.\nUse `wandb login`."), wandb.errors.CommError("x")):

        def fail(failure=failure, **_):
            raise failure

        monkeypatch.setattr(wandb, "init", fail)
        with pytest.raises(UserError, match=r"logger=wandb: .*WANDB_MODE=offline.*wandb sync") as told:
            make_logger("wandb", tmp_path / "r" / "one")
        assert "\n" not in str(told.value)


def test_online_what_the_server_has_is_not_sent_again(tmp_path, whole, monkeypatch) -> None:
    """The server tells how many rows it has; they are the first lines of the history."""
    from lighten.training.wandb_run import WandbRun

    class Server:
        offline, id, starting_step = False, "x", 4

        def __init__(self):
            self.rows = []

        def log(self, row, **_):
            self.rows.append(row)

    folder = tmp_path / "recipe" / "one"
    folder.mkdir(parents=True)
    lines = read(whole / "history.jsonl")
    history = folder / "history.jsonl"
    history.write_text("".join(json.dumps(line) + "\n" for line in lines))
    logger = WandbRun(folder, "p", {"a": 1})
    server = logger._experiment = Server()
    history.write_text("".join(json.dumps(line) + "\n" for line in lines[:6]))  # what the checkpoint has
    for line in lines[6:]:
        logger.log_metrics({k: v for k, v in line.items() if k not in OWN_KEYS}, step=line["step"] - 1)
    assert [row[STEP] for row in server.rows] == [line["step"] - 1 for line in lines[4:]]
    again = WandbRun(folder, "p", {"a": 1})
    again._experiment = server = Server()
    server.starting_step = 6
    again.log_metrics({k: v for k, v in lines[5].items() if k not in OWN_KEYS}, step=lines[5]["step"] - 1)
    assert server.rows == [], "it has that row"
    logger._experiment = again._experiment = None
