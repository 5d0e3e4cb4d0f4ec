"""A fit that prunes by cuts in spawned processes; says what the module has become in the process that spawned them."""

import warnings

import lightning as L
from live_cuts_fit import Module, data

from lighten import Prune

warnings.simplefilter("ignore")

if __name__ == "__main__":
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, precision="64-true", callbacks=[Prune(0.5, live=True, cuts=2, module="net")],
    )  # fmt: skip
    module = Module()
    trainer.fit(module, data(0, 2))
    print("width", module.net[0].weight.shape[0], module.net[0].out_channels)
