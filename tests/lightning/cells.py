"""What a cell of the matrix is made of: data, modules, techniques, a fit, and the proof that a file is its network."""

from dataclasses import dataclass
from pathlib import Path

import lightning as L
import onnx
import onnxruntime
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lighten import DistillationModule, Prune, Quantize, export_onnx, shrink
from lighten.quantization.activation_quantizers import QUANTIZERS, Stage, quantizers_of

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def net(width=8):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 3),
    )  # fmt: skip


class Plain(L.LightningModule):
    """A module of somebody's own, that has never heard of lighten."""

    metric = "val_loss"

    def __init__(self, net, lr=0.01):
        super().__init__()
        self.net, self.lr = net, lr

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val_loss", cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch, index):
        self.log("val_loss", cross_entropy(self(batch[0]), batch[1]))

    def predict_step(self, batch, index):
        return self(batch[0])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


class Taught(DistillationModule):
    """A student and a teacher, with a learning rate that Lightning's tuner finds."""

    metric = "student/loss"

    def __init__(self, student, teacher, lr=0.01):
        super().__init__(student, teacher, num_classes=3)
        self.lr = lr

    def configure_optimizers(self):
        return torch.optim.Adam(self.student.parameters(), self.lr)


def by_hand(kind, optimizers=1):
    """Return a subclass that takes its optimizers' steps itself; of two, one learns every other parameter."""

    class ByHand(kind):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.automatic_optimization = False

        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            own = self.optimizers()
            own = own if isinstance(own, list) else [own]
            for each in own:
                each.zero_grad()
            self.manual_backward(loss)
            for each in own:
                each.step()

        def configure_optimizers(self):
            learns = list(self.parameters())
            return [torch.optim.Adam(learns[i::optimizers], self.lr) for i in range(optimizers)]

    return ByHand


class Stream(IterableDataset):
    """Samples without a length."""

    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return iter([self.data[i] for i in range(len(self.data))])


class Images(L.LightningDataModule):
    """Sixty-four images of three kinds, with noise enough that no loss comes near zero."""

    def __init__(self, batch_size=16, *, streams=False):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        labels = torch.arange(64) % 3
        self.set = TensorDataset(2 * torch.randn(64, 1, 8, 8, generator=draw) + labels.view(-1, 1, 1, 1), labels)
        self.batch_size, self.streams = batch_size, streams

    def train_dataloader(self):
        return DataLoader(Stream(self.set) if self.streams else self.set, batch_size=self.batch_size)

    def val_dataloader(self):
        return DataLoader(self.set, batch_size=self.batch_size)

    test_dataloader = predict_dataloader = val_dataloader


class Seen(L.Callback):
    """Keeps the batches of the last validation, test or prediction."""

    def on_validation_epoch_start(self, trainer, module):
        self.batches = []

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(self, trainer, module, outputs, batch, index):
        self.batches.append(batch)

    def on_test_batch_end(self, trainer, module, outputs, batch, index):
        self.batches.append(batch)

    def on_predict_batch_end(self, trainer, module, outputs, batch, index):
        self.batches.append(batch)

    @property
    def samples(self):
        return [torch.cat(parts) for parts in zip(*self.batches, strict=True)]


@dataclass
class Techniques:
    """Which of ours take part in a fit."""

    prunes: bool = False
    quantizes: bool = False
    taught: bool = False

    def callbacks(self):
        made = [Prune(0.5, begin=0.0, end=0.5)] if self.prunes else []
        return made + ([Quantize(begin=0.5, freeze=0.8)] if self.quantizes else [])

    @property
    def kind(self):
        return Taught if self.taught else Plain

    def parts(self):
        """Return what a fresh module is made of, by name."""
        torch.manual_seed(1)
        return {"student": net(), "teacher": net(12)} if self.taught else {"net": net()}

    def module(self, alter=lambda kind: kind):
        return alter(self.kind)(**self.parts())


def trainer(folder, *callbacks, **settings):
    given = {"max_epochs": 4, "enable_checkpointing": False, "num_sanity_val_steps": 0, "default_root_dir": folder}
    return L.Trainer(**{**QUIET, **given, **settings}, callbacks=list(callbacks))


def plan_of(fit):
    return next((c.plan for c in fit.callbacks if isinstance(c, Prune)), None)


def target_of(module):
    return getattr(module, "student", module)


def is_quantized(module):
    target = target_of(module)
    return hasattr(target, QUANTIZERS) and quantizers_of(target).stage == Stage.ON


class File:
    """The exported file of a network, as a runtime computes it that does not optimise it."""

    def __init__(self, module, plan, folder: Path):
        target = target_of(module).eval()
        small = target if plan is None else shrink(target, plan)
        path = export_onnx(small, torch.zeros(2, 1, 8, 8), folder / "net.onnx")
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.proto = onnx.load(path)

    @property
    def integers(self):
        """Return how many weights are integers."""
        return sum(t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1 for t in self.proto.graph.initializer)

    @property
    def widths(self):
        """Return the number of filters of each convolution."""
        return sorted(t.dims[0] for t in self.proto.graph.initializer if len(t.dims) == 4)

    def __call__(self, images):
        return torch.from_numpy(self.session.run(None, {"input": images.numpy()})[0])


def prove(fit, module, plan, data, folder, *, logged=None, near=0.0, tests=False):
    """Assert that the file of ``module`` holds the network that ``fit`` validates and predicts with.

    Args:
        fit: a trainer.
        module: what it trained, or a copy.
        plan: of pruning, or ``None``.
        data: what is validated.
        folder: where the file goes.
        logged: the metric of the fit's own last validation, and the batches that it was of.
        near: what that may be off by, beyond a file's own tolerance.
        tests: look with ``trainer.test`` as well.
    """
    seen = Seen()
    fit.callbacks.append(seen)
    file = File(module, plan, folder)
    quantized = is_quantized(module)
    assert file.integers == (3 if quantized else 0)
    assert file.widths == ([8, 8] if plan is None else [g.width_after for g in plan.groups])
    predicted = torch.cat(fit.predict(module, data))
    answers = file(seen.samples[0])
    assert predicted.shape == answers.shape
    off, step = (predicted - answers).abs(), float(answers.max() - answers.min()) / 255
    if quantized:  # a value between two codes may fall on the other one
        assert off.max() <= 2 * step
        off = off.flatten().sort().values[: int(0.95 * off.numel())]
    assert off.max() <= 1e-5
    scored = [(*logged, near)] if logged is not None else []
    for look in (fit.validate, fit.test) if tests else (fit.validate,):
        value = look(module, data, verbose=False)[0][module.metric]
        scored.append((value, seen.samples, 0.0))
    for value, (images, labels), further in scored:
        assert abs(float(value) - float(cross_entropy(file(images), labels))) <= (1e-3 if quantized else 1e-5) + further
    fit.callbacks.remove(seen)
