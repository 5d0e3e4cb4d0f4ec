import io
import itertools
import re
from types import SimpleNamespace

import lightning as L
import pytest
import rich
from lightning.pytorch.loggers import CSVLogger

from lighten.training.progress_bar import StageBar, StageLines, progress_bar


def test_one_plain_line_an_epoch_where_there_is_no_terminal(plain, batches, trainer, capsys) -> None:
    assert isinstance(progress_bar("teacher"), StageLines)
    module = plain()
    module.on_train_epoch_end = lambda: module.log("student/loss", 0.5, prog_bar=True)
    trainer(enable_progress_bar=True, max_epochs=3).fit(module, batches, batches)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for number, line in enumerate(lines, 1):
        assert re.fullmatch(rf"student epoch {number}/3( student/loss 0\.5)? \(\d+ s\)", line)
    assert "student/loss" in lines[-1]


@pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable")
def test_an_epoch_that_goes_on_is_timed_from_there(plain, batches, trainer, capsys, tmp_path, monkeypatch) -> None:
    """The clock of this process may have run for years."""

    class Save(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "mid.ckpt")

    trainer(callbacks=[Save()]).fit(plain(), batches, batches)
    ticks = itertools.count(10**8)
    monkeypatch.setattr("lighten.training.progress_bar.time", SimpleNamespace(monotonic=lambda: next(ticks)))
    fit = trainer(enable_progress_bar=True)
    fit.fit(plain(), batches, batches, ckpt_path=str(tmp_path / "mid.ckpt"))
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"student epoch 2/2 \(\d{1,2} s\)", line)


def test_other_ranks_are_silent(plain, batches, trainer, capsys) -> None:
    fit = trainer(enable_progress_bar=True)
    fit.progress_bar_callback.disable()
    fit.fit(plain(), batches, batches)
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar_that_names_the_stage(plain, batches, trainer, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    bar = progress_bar("teacher")
    assert isinstance(bar, StageBar)
    screen = io.StringIO()
    bar._console_kwargs = {"file": screen, "force_terminal": True, "width": 200}
    before = rich.get_console()
    try:
        fit = trainer(enable_progress_bar=False, max_epochs=1)
        fit.loggers = [CSVLogger(tmp_path)]  # Lightning would show its version number
        fit.callbacks.insert(0, bar)
        fit.fit(plain(), batches, batches)
    finally:
        rich._console = before
    assert "teacher epoch 1/1" in screen.getvalue()
    assert "v_num" not in screen.getvalue()
