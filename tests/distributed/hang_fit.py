"""Run by hangs.py in place of ``train.py``: the real door, with a fit of two processes to some of which comes harm.

What comes, and to whom, is in the environment: ``HARM`` of KILL, STOP, TERM, USR1, raise, sleep, nan, range (an
infinite activation, which fake-quantization hides from the loss) or disk (it takes no more); ``TO`` such as ``0,1``;
``SLOW``, a rank that takes a second longer in that step, or nothing.
"""

import errno
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

STEP = 3
LONGER = 1.0
SHORT = 2
"""Steps of an epoch, and with them between two checkpoints, where the harm concerns these: it comes in the second."""
PATIENCE = 3.0
"""Seconds that a rank may be stopped here: fewer than two starts of Python may differ by."""


def refuse(folder):
    """Let nothing in ``folder`` be opened for writing any more by this process."""

    def watched(event, args):
        if event == "open" and str(args[0]).startswith(f"{folder}/") and args[2] & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), args[0])

    sys.addaudithook(watched)


def run(recipe):
    import lightning as L
    import torch
    from lightning.pytorch.demos.boring_classes import BoringModel

    from lighten import Quantize
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
            if rank in to:
                (folder / f"harmed{rank}").write_text(str(time.time()))
                while not all((folder / f"harmed{each}").exists() for each in to):
                    time.sleep(0.001)  # the first one's end may be the others' before they come here
            if rank == slow:
                time.sleep(LONGER)
            if rank in to:
                if harm == "raise":
                    raise KeyError("out of luck")
                if harm == "sleep":
                    time.sleep(600)
                elif harm in ("nan", "range"):
                    pl_module.poisoned = True
                elif harm == "disk":
                    refuse(folder)
                else:
                    os.kill(os.getpid(), getattr(signal, f"SIG{harm}"))

    class Model(BoringModel):
        poisoned = False

        def training_step(self, batch, batch_idx):
            poisoned, self.poisoned = self.poisoned, False
            batch = torch.where(batch == batch.max(), torch.inf, batch) if poisoned and harm == "range" else batch
            loss = super().training_step(batch, batch_idx)["loss"]
            return loss * float("nan") if poisoned and harm == "nan" else loss

    settings = {
        "accelerator": "cpu", "devices": recipe.trainer.devices, "num_nodes": recipe.trainer.num_nodes,
        "strategy": "ddp", "max_steps": 40, "limit_val_batches": 0, "enable_progress_bar": False,
        "timeout": recipe.trainer.timeout,
    }  # fmt: skip
    settings |= {"limit_train_batches": SHORT} if harm in ("range", "disk") else {}
    ranges = [Quantize(begin=0.0)] if harm == "range" else []
    trainer = make_trainer(
        folder=folder / "run", stage="student", settings=settings, callbacks=[Harm(), *ranges], monitor=None,
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
    from lighten.cli.main import main

    importlib.import_module("lightning.pytorch")  # as lighten.run.pipeline does before it runs
    sys.modules["lighten.run.pipeline"] = SimpleNamespace(run=run)
    sys.exit(main(sys.argv[1:], recipes=Path(__file__).parents[2] / "recipes", default="train"))
