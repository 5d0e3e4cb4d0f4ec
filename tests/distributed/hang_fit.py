"""Run by hangs.py in place of ``train.py``: the real door, with a fit of two processes to some of which comes harm.

What comes, and to whom, is in the environment: ``HARM`` of KILL, STOP, TERM, USR1, raise, sleep or nan; ``TO`` such as
``0,1``; ``SLOW``, a rank that takes a second longer in that step, or nothing.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

STEP = 3
LONGER = 1.0
PATIENCE = 3.0
"""Seconds that a rank may be stopped here: fewer than two starts of Python may differ by."""


def run(recipe):
    import lightning as L
    from lightning.pytorch.demos.boring_classes import BoringModel

    from lighten.training import peers
    from lighten.training.checkpoint import latest_good
    from lighten.training.fit import make_trainer

    watch = peers._watch
    peers._watch = lambda cause, rank, _, launcher: watch(cause, rank, PATIENCE, launcher)
    harm, to, slow = os.environ["HARM"], os.environ["TO"].split(","), os.environ.get("SLOW")
    folder = Path(recipe.runs)

    class Harm(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            rank = str(trainer.global_rank)
            if trainer.global_step != STEP:
                return
            if rank == slow:
                time.sleep(LONGER)
            if rank in to:
                (folder / f"harmed{rank}").write_text(str(time.time()))
                if harm == "raise":
                    raise KeyError("out of luck")
                if harm == "sleep":
                    time.sleep(600)
                elif harm == "nan":
                    pl_module.poisoned = True
                else:
                    os.kill(os.getpid(), getattr(signal, f"SIG{harm}"))

    class Model(BoringModel):
        poisoned = False

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)["loss"]
            loss, self.poisoned = loss * float("nan") if self.poisoned else loss, False
            return loss

    settings = {
        "accelerator": "cpu", "devices": recipe.trainer.devices, "num_nodes": recipe.trainer.num_nodes,
        "strategy": "ddp", "max_steps": 40, "limit_val_batches": 0, "enable_progress_bar": False,
        "timeout": recipe.trainer.timeout,
    }  # fmt: skip
    trainer = make_trainer(
        folder=folder / "run", stage="student", settings=settings, callbacks=[Harm()], monitor=None,
        on_bad_batch=recipe.on_bad_batch,
    )  # fmt: skip
    resumed = latest_good(folder / "run" / "checkpoints")
    model = Model()
    trainer.fit(model, ckpt_path=str(resumed) if resumed else None, weights_only=True)
    weights = [value.flatten().tolist() for value in model.state_dict().values()]
    (folder / f"weights{trainer.global_rank}").write_text(json.dumps(weights))
    return folder


if __name__ == "__main__":
    from lighten.training.signals import hold

    hold()
    from lighten.launch import main

    sys.modules["lighten.run"] = SimpleNamespace(run=run)
    sys.exit(main(sys.argv[1:], Path(__file__).parents[2] / "recipes"))
