"""Run by test_preempt.py in place of ``train.py``: the real door, with two processes of which one is signalled."""

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace


def run(recipe):
    import lightning as L
    from lightning.pytorch.demos.boring_classes import BoringModel

    from lighten.training.fit import leave_processes, make_trainer
    from lighten.training.signals import Preempted

    class Signalled(L.Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_rank == 1 and trainer.global_step == 3:
                os.kill(os.getpid(), signal.SIGUSR1)

    settings = {
        "accelerator": "cpu", "devices": 2, "strategy": "ddp", "max_epochs": 100, "limit_val_batches": 0,
        "enable_progress_bar": False,
    }  # fmt: skip
    folder = Path(recipe.runs)
    trainer = make_trainer(folder=folder, stage="student", settings=settings, callbacks=[Signalled()], monitor=None)
    try:
        trainer.fit(BoringModel())
    except Preempted as stop:
        (folder / f"rank{trainer.global_rank}").write_text(f"{trainer.global_step} {stop.signum.name}")
        raise
    leave_processes()


if __name__ == "__main__":
    from lighten.training.signals import hold

    hold()
    from lighten.cli.main import main

    sys.modules["lighten.run.pipeline"] = SimpleNamespace(run=run)
    sys.exit(main(sys.argv[1:], recipes=Path(__file__).parents[2] / "recipes", default="train"))
