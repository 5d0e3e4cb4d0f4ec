"""The module's own step runs on a batch as in the fit, and leaves nothing behind."""

import copy

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lighten.training.example_inputs import find_part
from lighten.training.look import build, run_step, step_of, transferred, unnoticed

LABELS = torch.arange(24) % 3
INPUTS = torch.randn(24, 5, generator=torch.Generator().manual_seed(0)) + LABELS.view(-1, 1)


def loader(**settings):
    return DataLoader(TensorDataset(INPUTS, LABELS), batch_size=8, **settings)


def trainer(*callbacks, **settings):
    given = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, "accelerator": "cpu",
             "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}  # fmt: skip
    return L.Trainer(**{**given, **settings}, callbacks=list(callbacks))


class Plain(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


class InSetup(L.Callback):
    """Does something where callbacks look, and ends the fit."""

    def __init__(self, action):
        self.action = action

    def setup(self, trainer, pl_module, stage):
        self.action(trainer, pl_module)
        raise KeyError("seen")


def in_setup(module, action, *validation):
    with pytest.raises(KeyError, match="seen"):
        trainer(InSetup(action)).fit(module, loader(), *validation)


def test_the_step_gets_the_batch_after_the_hooks_of_the_transfer():
    class Prepared(Plain):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return batch[0] - 1000.0, batch[1]

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch[0] / 50.0, batch[1]

    batch = next(iter(loader()))

    def action(trainer, pl_module):
        with unnoticed(trainer, pl_module):
            inputs, labels = transferred(trainer, pl_module, batch)
        assert torch.equal(inputs, (batch[0] - 1000.0) / 50.0)
        assert torch.equal(labels, batch[1])

    in_setup(Prepared(), action)


def test_the_step_runs_once_as_the_stage_or_the_module_says():
    calls = []

    class Watched(Plain):
        watched_step = "training_step"

        def training_step(self, batch, batch_idx):
            calls.append(("training", torch.is_grad_enabled(), batch_idx))
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            calls.append(("validation", torch.is_grad_enabled(), batch_idx))

    def action(trainer, pl_module):
        for name in ("training_step", "validation_step"):
            pl_module.watched_step = name
            assert step_of(trainer, pl_module) == name
            with unnoticed(trainer, pl_module):
                run_step(trainer, pl_module, transferred(trainer, pl_module, next(iter(loader()))))

    in_setup(Watched(), action, loader())
    assert calls == [("training", True, 0), ("validation", False, 0)]


def test_layers_that_a_hook_makes_are_made_once():
    class Late(Plain):
        def __init__(self):
            super().__init__()
            del self.net
            self.made = 0

        def configure_model(self):
            self.made += 1
            self.net = nn.Linear(5, 3)

    class Build(L.Callback):
        def setup(self, trainer, pl_module, stage):
            assert build(trainer, pl_module)
            assert isinstance(pl_module.net, nn.Linear)

    module = Late()
    trainer(Build(), max_epochs=1).fit(module, loader())
    assert module.made == 1


class Untidy(Plain):
    """Leaves traces wherever it can."""

    def __init__(self):
        super().__init__()
        self.net.insert(1, nn.BatchNorm1d(8))
        self.accuracy = MulticlassAccuracy(num_classes=3)
        self.outputs, self.seen, self.mean = [], {"batches": 0}, torch.zeros(5)

    def training_step(self, batch, batch_idx):
        logits = self.net(batch[0] + torch.rand(5))
        self.accuracy(logits, batch[1])
        self.log("accuracy", self.accuracy)
        self.log_dict({"rate": self.optimizers().param_groups[0]["lr"]})
        self.outputs.append(logits)
        self.seen["batches"] += 1
        self.mean += batch[0].mean(0)
        self.net[0].weight.requires_grad_(False)
        self.logger.log_metrics({"by hand": 1.0}, step=0)
        self.trainer.should_stop = True
        loss = F.cross_entropy(logits, batch[1])
        loss.backward(retain_graph=True)
        return loss

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches == 6
        return torch.optim.Adam(self.parameters(), 1e-2)


def test_a_look_leaves_nothing_behind(tmp_path):
    class Compare(L.Callback):
        def setup(self, trainer, pl_module, stage):
            pl_module.net(torch.randn(4, 5)).sum().backward()
            before = copy.deepcopy(pl_module.__dict__ | {"_trainer": None})
            gradients = [p.grad.clone() for p in pl_module.parameters()]
            random, data = torch.get_rng_state(), draw.get_state()
            held = {k: v for o in (trainer, trainer.fit_loop, trainer.strategy) for k, v in vars(o).items()}
            find_part(trainer, pl_module, None)
            assert torch.equal(random, torch.get_rng_state())
            assert torch.equal(data, draw.get_state())
            now = {k: v for o in (trainer, trainer.fit_loop, trainer.strategy) for k, v in vars(o).items()}
            assert held.keys() == now.keys()
            assert all(held[k] is now[k] or held[k] == now[k] for k in held)
            assert not trainer.should_stop
            assert before.keys() == pl_module.__dict__.keys()
            assert (pl_module.outputs, pl_module.seen) == ([], {"batches": 0})
            assert not pl_module.mean.any()
            assert not pl_module.accuracy.tp.any()
            for name, value in pl_module.state_dict().items():
                assert torch.equal(value, before["_modules"]["net"].state_dict()[name.removeprefix("net.")])
            for parameter, gradient in zip(pl_module.parameters(), gradients, strict=True):
                assert parameter.requires_grad
                assert torch.equal(parameter.grad, gradient)
            assert trainer.callback_metrics == {}
            assert trainer._results == {}
            raise KeyError("seen")

    draw = torch.Generator()
    logger = CSVLogger(tmp_path)
    with pytest.raises(KeyError, match="seen"):
        trainer(Compare(), logger=logger, log_every_n_steps=1).fit(Untidy(), loader(shuffle=True, generator=draw))
    assert not logger.experiment.metrics
