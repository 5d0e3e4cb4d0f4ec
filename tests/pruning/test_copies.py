"""Averages of a network that is pruned: what they validate and save is the pruned network, whoever keeps them."""

import copy
import warnings

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

from lighten.pruning import shrink
from lighten.pruning.callback import Prune

DATA = DataLoader(TensorDataset(torch.randn(48, 6), torch.arange(48) % 3), batch_size=8)


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("val", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.05)


class Shadow(L.Callback):
    """Keeps an average of the parameters in a dict, and a teacher that it never changes."""

    def on_fit_start(self, trainer, pl_module):
        self.teacher = copy.deepcopy(pl_module)
        self.shadow = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer, pl_module, *_):
        for name, p in pl_module.named_parameters():
            self.shadow[name].lerp_(p, 0.1)

    def on_validation_epoch_start(self, trainer, pl_module):
        self.own = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        pl_module.load_state_dict(self.shadow, strict=False)

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.load_state_dict(self.own, strict=False)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        checkpoint["state_dict"] |= {name: p.clone() for name, p in self.shadow.items()}


class Twin(L.Callback):
    """Keeps a copy of one part, pairs both state dicts by their order, and puts the copy in that part's place."""

    def setup(self, trainer, pl_module, stage):
        self.twin = copy.deepcopy(pl_module.net).eval()

    @torch.no_grad()
    def on_train_batch_end(self, trainer, pl_module, *_):
        for ours, theirs in zip(self.twin.state_dict().values(), pl_module.net.state_dict().values(), strict=True):
            ours.copy_(average(ours, theirs, None))

    def on_validation_start(self, trainer, pl_module):
        self.own, pl_module.net = pl_module.net, self.twin

    def on_validation_end(self, trainer, pl_module):
        pl_module.net = self.own

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        checkpoint["state_dict"] = {f"net.{name}": value for name, value in self.twin.state_dict().items()}


def average(ours, theirs, _):
    return torch.lerp(ours, theirs, 0.1) if ours.is_floating_point() else theirs


class Averaged(L.Callback):
    """Keeps one of torch's averaged models, and loads its state dict and the module's own in turn."""

    def setup(self, trainer, pl_module, stage):
        self.kept = {"model": AveragedModel(pl_module, avg_fn=average, use_buffers=True)}

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.kept["model"].update_parameters(pl_module)

    def on_validation_start(self, trainer, pl_module):
        self.own = copy.deepcopy(pl_module.state_dict())
        pl_module.load_state_dict(self.kept["model"].module.state_dict())

    def on_validation_end(self, trainer, pl_module):
        pl_module.load_state_dict(self.own)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        checkpoint["state_dict"] = self.kept["model"].module.state_dict()


def trainer(*callbacks, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return L.Trainer(callbacks=list(callbacks), num_sanity_val_steps=0, **quiet, **options)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")
        yield


@pytest.mark.parametrize("first", [True, False], ids=["before the average", "after it"])
@pytest.mark.parametrize("keep", [Shadow, Twin, Averaged, lambda: EMAWeightAveraging(decay=0.9)])
def test_what_is_logged_and_saved_is_the_pruned_network(keep, first, tmp_path):
    prune, keeper = Prune(0.5, begin=0.3, end=0.6), keep()
    saver = ModelCheckpoint(tmp_path, save_last=True, monitor="val")
    fit = trainer(*([prune, keeper] if first else [keeper, prune]), saver, max_epochs=4)
    fit.fit(Module(), DATA, DATA)
    fresh, again = Module(), Prune(0.5)
    trained = trainer(again).validate(fresh, DATA, ckpt_path=saver.last_model_path, verbose=False)[0]["val"]
    cut = Module()
    cut.net = shrink(fresh, again.plan).net
    assert again.plan.sparsity == 0.5
    assert trained == pytest.approx(float(fit.callback_metrics["val"]), rel=1e-5)
    assert trained == pytest.approx(trainer().validate(cut, DATA, verbose=False)[0]["val"], rel=1e-5)
    if isinstance(keeper, Shadow):
        assert (keeper.teacher.net[0].weight != 0).all()


def test_a_resumed_fit_goes_on_with_the_masked_average(tmp_path):
    def fit(*callbacks, **options):
        prune, module = Prune(0.5, begin=0.0, end=0.4), Module()
        averaging = EMAWeightAveraging(decay=0.9)
        trainer(averaging, prune, *callbacks, max_epochs=4, enable_checkpointing=bool(callbacks)).fit(
            module, DATA, DATA, **options
        )
        return module, prune

    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    _, whole = fit(saver)
    module, prune = fit(ckpt_path=tmp_path / "epoch=2.ckpt")
    assert prune.plan.hash == whole.plan.hash
    x = torch.randn(4, 6)
    assert torch.allclose(shrink(module, prune.plan).eval()(x), module.eval()(x), atol=1e-5)


def test_a_network_that_was_pruned_is_pruned_further():
    module, first, second = Module(), Prune(0.5, begin=0.0, end=0.5), Prune(0.5, begin=0.0, end=0.5)
    for prune in (first, second):
        trainer(prune, max_epochs=2, enable_checkpointing=False).fit(module, DATA)
    assert (first.plan.sparsity, second.plan.sparsity) == (0.5, 0.75)
    assert set(first.plan.groups[0].removed) < set(second.plan.groups[0].removed)
