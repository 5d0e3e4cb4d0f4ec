"""What is left of pruning after a resume: ``python benchmarks/resume.py [--epochs 4] [--json PATH]``.

One small network, on the same batches, is pruned in the first quarter of a fit: by Lightning's ``ModelPruning`` and by
``Prune``, each as its documentation shows. Once the fit runs to its end, once it is stopped at half and resumed from
its checkpoint by new objects. Counted at the end: the share of all weights that are zero.
"""

import argparse
import contextlib
import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelPruning
from rows import Row, add_row, command
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lighten import Prune

AMOUNT, BATCHES = 0.5, 8


class Images(L.LightningModule):
    """The example of a module, without anything of pruning."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.example_input_array = torch.zeros(1, 16)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Momentum revives a weight whose mask is gone."""
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def theirs(epochs: int) -> L.Callback:
    return ModelPruning("l1_unstructured", amount=AMOUNT, apply_pruning=lambda epoch: epoch < epochs // 4)


def ours(epochs: int) -> L.Callback:
    return Prune(AMOUNT, begin=0.0, end=0.25, score="magnitude")


PRUNERS: dict[str, Callable[[int], L.Callback]] = {"lighten": ours, "Lightning's ModelPruning": theirs}


def zeros(make: Callable[[int], L.Callback], epochs: int, *, stop: bool) -> float:
    """Return the share of zero weights at the end of a fit that is resumed at half, or not."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    data = TensorDataset(torch.randn(32 * BATCHES, 16), torch.randint(0, 4, (32 * BATCHES,)))
    loader = DataLoader(data, batch_size=32)

    def fit(most: int, path: Path | None) -> tuple[L.Trainer, Images]:
        module = Images(copy.deepcopy(net))
        # the fit's length is the same in both parts: schedules follow it
        trainer = L.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[make(epochs), StopAfter(most)],
        )  # fmt: skip
        trainer.fit(module, loader, ckpt_path=path, weights_only=False if path else None)
        return trainer, module

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "half.ckpt"
        if stop:
            fit(epochs // 2, None)[0].save_checkpoint(path)
        _, module = fit(epochs, path if stop else None)
    weights = [m.weight for m in module.modules() if isinstance(m, nn.Linear)]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


class StopAfter(L.Callback):
    """Ends a fit after so many epochs, as a time limit would."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop where it is time."""
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--json", type=Path, help="rows of the table that python -m benchmarks writes")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print("| | zero weights, straight | zero weights, resumed | left |\n|---|---:|---:|---:|")
    left: dict[str, float | str] = {}
    for name, make in PRUNERS.items():
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                straight, resumed = (zeros(make, arguments.epochs, stop=stop) for stop in (False, True))
        except Exception as error:  # of a library's own
            left[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
            print(f"| {name} | {left[name]} | | |")
            continue
        left[name] = 100 * resumed / straight
        print(f"| {name} | {straight:.2%} | {resumed:.2%} | {left[name]:.1f} % |", flush=True)
    claim = "zero weights that a resumed fit ends with, of those that it ends with without a stop"
    mine = left.pop("lighten")
    add_row(arguments.json, Row("resume", claim, "%", mine, left, better="higher", command=command()))


if __name__ == "__main__":
    main()
