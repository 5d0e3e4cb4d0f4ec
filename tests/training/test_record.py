import json

import pytest
import torch

from lighten.training.checkpoint import latest_good
from lighten.training.record import keep_until, read
from lighten.utils.files import DiskError


def test_a_line_per_log_point_with_what_was_logged_then(tmp_path, plain, batches, trainer) -> None:
    seen = []
    module = plain()
    module.on_train_batch_end = lambda outputs, batch, batch_idx: seen.append(outputs["loss"].item())
    fit = trainer(log_every_n_steps=2)
    fit.fit(module, batches, batches)
    lines = [json.loads(text) for text in (tmp_path / "history.jsonl").read_text().splitlines()]
    train = [line for line in lines if "train/loss" in line]
    validation = [line for line in lines if "student/accuracy" in line]
    assert [(line["step"], line["epoch"], line["progress"]) for line in train] == [
        (2, 0, pytest.approx(1 / 3)),
        (4, 1, pytest.approx(2 / 3)),
        (6, 1, 1.0),
    ]
    assert [line["train/loss"] for line in train] == pytest.approx([seen[1], seen[3], seen[5]])
    assert [line["step"] for line in validation] == [3, 6]
    assert len(lines) == 5
    assert all("train/loss" not in line for line in validation)
    times = [line["time"] for line in lines]
    assert times == sorted(times)
    assert times[0] >= 0


def test_a_line_tells_how_busy_the_machine_is(tmp_path, plain, batches, trainer) -> None:
    trainer(max_epochs=1).fit(plain(), batches, batches)
    lines = read(tmp_path / "history.jsonl")
    assert len(lines) == 4
    assert all({"system/cpu", "system/proc.memory.rssMB", "system/memory_percent"} <= set(line) for line in lines)


def test_resume_drops_what_comes_again_and_doubles_nothing(tmp_path, plain, batches, trainer) -> None:
    trainer(max_epochs=3).fit(plain(), batches, batches)
    path = tmp_path / "history.jsonl"
    whole = read(path)
    keep = next(p for p in (tmp_path / "checkpoints").glob("last*") if "epoch=001" in p.name and p.suffix == ".ckpt")
    with path.open("a") as file:
        file.write('{"step": 9, "torn')
    trainer(max_epochs=3).fit(plain(), batches, batches, ckpt_path=keep)
    resumed = read(path)
    assert len(path.read_text().splitlines()) == len(whole)
    for key in ("step", "epoch", "progress", "train/loss", "student/accuracy"):
        assert [line.get(key) for line in resumed] == [line.get(key) for line in whole], key
    times = [line["time"] for line in resumed]
    assert times == sorted(times), "the clock began anew"


def test_a_fit_that_begins_anew_begins_a_new_history(tmp_path, plain, batches, trainer) -> None:
    for _ in range(2):
        trainer(max_epochs=1).fit(plain(), batches, batches)
    assert [line["step"] for line in read(tmp_path / "history.jsonl")] == [1, 2, 3, 3]


def test_what_is_not_finite_is_null_and_a_fit_without_end_has_no_progress(tmp_path, plain, batches, trainer) -> None:
    module = plain()
    module.on_train_batch_start = lambda batch, batch_idx: module.log_dict(
        {"a": torch.tensor(float("nan")), "b": float("-inf"), "c": 1.0}
    )
    fit = trainer(max_epochs=-1, max_time={"seconds": 1})
    module.on_train_epoch_end = lambda: setattr(fit, "should_stop", True)
    fit.fit(module, batches, batches)
    line = read(tmp_path / "history.jsonl")[0]
    assert (line["a"], line["b"], line["c"], line["progress"]) == (None, None, 1.0, None)


def test_testing_after_the_fit_writes_no_history(tmp_path, plain, batches, trainer) -> None:
    fit = trainer(max_epochs=1)
    module = plain()
    fit.fit(module, batches, batches)
    before = (tmp_path / "history.jsonl").read_text()
    fit.validate(module, batches, verbose=False)
    assert (tmp_path / "history.jsonl").read_text() == before


def test_a_history_that_cannot_be_written_stops_the_fit_and_loses_nothing(tmp_path, plain, batches, trainer) -> None:
    trainer(tmp_path / "whole", max_epochs=3).fit(plain(), batches, batches)
    whole = read(tmp_path / "whole" / "history.jsonl")
    module = plain()
    path = tmp_path / "history.jsonl"
    module.on_train_epoch_start = lambda: module.current_epoch == 1 and (path.rename(tmp_path / "aside"), path.mkdir())
    with pytest.raises(DiskError, match=r"history\.jsonl cannot be written \(Is a directory\)"):
        trainer(max_epochs=3).fit(module, batches, batches)
    path.rmdir()
    (tmp_path / "aside").rename(path)
    resumed = latest_good(tmp_path / "checkpoints")
    assert resumed is not None
    trainer(max_epochs=3).fit(plain(), batches, batches, ckpt_path=resumed)
    lines = read(path)
    assert [line["step"] for line in lines] == [line["step"] for line in whole]
    for key in ("train/loss", "student/accuracy"):
        assert [line.get(key) for line in lines] == [line.get(key) for line in whole]


def test_keep_until_leaves_out_lines_that_are_none(tmp_path) -> None:
    path = tmp_path / "h"
    path.write_text('{"step": 1}\nnoise\n[1]\n{"step": 2, "x": null}\n{"step": 3}\n')
    keep_until(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2, "x": null}\n'


def test_a_fit_that_begins_anew_keeps_no_line_of_step_zero(tmp_path) -> None:
    path = tmp_path / "h"
    path.write_text('{"step": 0}\n{"step": 1}\n')
    keep_until(path, 0)
    assert path.read_text() == ""


def test_latest_good_finds_what_history_goes_with(tmp_path, plain, batches, trainer) -> None:
    trainer(max_epochs=2).fit(plain(), batches, batches)
    step = torch.load(latest_good(tmp_path / "checkpoints"), weights_only=True)["global_step"]
    assert step == read(tmp_path / "history.jsonl")[-1]["step"]
