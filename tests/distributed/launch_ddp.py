"""Run by test_launch_ddp.py in place of ``train.py``: the real door, with a tiny fit of two processes as the story."""

import sys
from pathlib import Path
from types import SimpleNamespace


def run(recipe):
    import lightning as L
    from lightning.pytorch.demos.boring_classes import BoringModel

    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_steps=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(BoringModel())
    (Path(recipe.runs) / f"seed{recipe.seed}-rank{trainer.global_rank}-of{trainer.world_size}").touch()
    return Path(recipe.runs)


if __name__ == "__main__":
    from lighten.cli.main import main

    sys.modules["lighten.run.pipeline"] = SimpleNamespace(run=run)
    sys.exit(main(sys.argv[1:], recipes=Path(__file__).parents[2] / "recipes", default="train"))
