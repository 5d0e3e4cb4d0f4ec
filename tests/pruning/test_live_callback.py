"""``Prune(live=True)`` beside what Lightning does with a module: all against the same fit with masks."""

import copy
import subprocess
import sys
import warnings

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from torch import nn
from torch.optim import LBFGS, SGD, AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from lighten import DistillationModule, Prune, Quantize, UserError, shrink
from lighten.pruning.live import STATE_KEY, live_cut_of
from lighten.training.order import OrderedLoader


class Plain(L.LightningModule):
    """A module that has never heard of pruning."""

    def __init__(self, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 6, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(96, 4),
        )  # fmt: skip
        self.double()  # before a checkpoint is loaded
        self.kept = None

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        self.kept = self(batch[0])  # a graph that outlives the step
        return F.cross_entropy(self.kept, batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val", F.cross_entropy(self(batch[0]), batch[1]))

    test_step = validation_step

    def configure_optimizers(self):
        return SGD(self.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)


class ByHand(Plain):
    """Two optimizers, stepped by hand over two batches."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.manual_backward(super().training_step(batch, batch_idx) / 2)
        if batch_idx % 2:
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

    def configure_optimizers(self):
        return [SGD(self.net[:3].parameters(), lr=0.05, momentum=0.9), AdamW(self.net[3:].parameters(), lr=0.01)]


class Momentum(Plain):
    """Keeps a slow copy of its network inside, as momentum contrast does, and a teacher that never changes."""

    def __init__(self):
        super().__init__()
        self.slow, self.teacher = copy.deepcopy(self.net).requires_grad_(False), copy.deepcopy(self.net)
        self.teacher.requires_grad_(False)

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            for slow, fast in zip(self.slow.parameters(), self.net.parameters(), strict=True):
                slow.lerp_(fast, 0.2)
        logits = self.slow(batch[0]) + self.teacher(batch[0])
        return super().training_step(batch, batch_idx) + (logits - self.net(batch[0])).square().mean()


class Places:
    """Random images by (epoch, sample), as a loader that is taken up in mid-epoch wants them."""

    def __init__(self, batches):
        draw = torch.Generator().manual_seed(1)
        images = torch.randn(4 * batches, 3, 8, 8, generator=draw).double()
        self.tensors = images, torch.randint(0, 4, (4 * batches,), generator=draw)

    def __len__(self):
        return len(self.tensors[0])

    def __getitems__(self, places):
        chosen = [sample for _, sample in places]
        return tuple(tensor[chosen] for tensor in self.tensors)


def loader(batches=16):
    return DataLoader(TensorDataset(*Places(batches).tensors), batch_size=4)


def fit(module, *, live=True, callbacks=(), ckpt_path=None, prune=None, data=None, **options):
    prune = prune or Prune(0.5, begin=0.1, end=0.7, live=live, cuts=2, module="net" if hasattr(module, "net") else None)
    settings = {
        "max_epochs": 2, "logger": False, "enable_checkpointing": False, "accelerator": "cpu",
        "precision": "64-true", "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    trainer = L.Trainer(**{**settings, **options}, callbacks=[prune, *callbacks])
    trainer.fit(module, data or loader(), loader(2), ckpt_path=ckpt_path)
    return module, prune, trainer


def gap(one, other):
    """Return the largest difference of two modules' states, of the same shapes."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def gaps(one, other):
    """Return the names of tensors that differ."""
    assert one.keys() == other.keys()
    return {name: tuple(value.shape) for name, value in one.items() if not torch.equal(value, other[name])}


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers", ".*LeafSpec", ".*number of training batches", ".*callbacks used to create",
            ".*Swapping scheduler", ".*exists and is not empty", ".*loading a checkpoint", ".*resuming from",
        ):  # fmt: skip
            warnings.filterwarnings("ignore", message=message)
        yield


CASES = {
    "plain": (Plain, {}),
    "accumulation": (Plain, {"accumulate_grad_batches": 3}),
    "clipping": (Plain, {"gradient_clip_val": 0.1}),
    "by hand": (ByHand, {}),
    "averaged": (Plain, {"callbacks": lambda: [EMAWeightAveraging(decay=0.9)]}),
    "stochastic averages": (
        Plain, {"callbacks": lambda: [StochasticWeightAveraging(0.01, swa_epoch_start=1)], "max_epochs": 3},
    ),
    "through int8": (Plain, {"callbacks": lambda: [Quantize(begin=0.3, module="net")], "gradient_clip_val": 1.0}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_ends_with_the_weights_of_masks(case):
    kind, options = CASES[case]
    found = []
    for live in (False, True):
        callbacks = options.get("callbacks", list)()
        rest = {key: value for key, value in options.items() if key != "callbacks"}
        module, prune, _ = fit(kind(), live=live, callbacks=callbacks, **rest)
        found.append((module, prune.plan, shrink(module, prune.plan)))
    (masked, plan, one), (cut, same, other) = found
    assert plan.hash == same.hash
    assert plan.sparsity == 0.5
    assert gap(one, other) <= 1e-6
    assert [tuple(p.shape) for p in cut.net.parameters()] == [tuple(p.shape) for p in other.net.parameters()]
    assert sum(p.numel() for p in cut.net.parameters()) < sum(p.numel() for p in masked.net.parameters())


def test_what_never_changes_is_no_copy():
    module, *_ = fit(Momentum())
    assert module.teacher[0].weight.shape[0] == 8
    assert module.slow[0].weight.shape[0] == module.net[0].weight.shape[0] == 4


def test_an_average_inside_the_module_is_cut_once():
    class Averaged(Plain):
        def __init__(self):
            super().__init__()
            self.ema = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)

        def on_train_batch_end(self, *_):
            self.ema.update_parameters(self.net)

    module, *_ = fit(Averaged())
    assert module.ema.module[0].weight.shape[0] == module.net[0].weight.shape[0] == 4
    assert module.ema.module[0].out_channels == 4


def test_learned_ranges_live_beside_cuts():
    quantize = Quantize(begin=0.3, module="net", ranges="lsq")  # their gradients are scaled by the size of activations
    module, prune, _ = fit(Plain(), callbacks=[quantize], gradient_clip_val=1.0)
    assert module.net[0].weight.shape[0] == 4
    assert shrink(module, prune.plan).net[0].weight.shape[0] == 4


def test_parameters_stay_the_same_objects_and_widths_fall_in_steps():
    class Widths(L.Callback):
        seen = []  # noqa: RUF012

        def on_train_batch_end(self, trainer, pl_module, *_):
            self.seen.append(pl_module.net[0].weight.shape[0])
            state = trainer.optimizers[0].state
            assert all(state[p]["momentum_buffer"].shape == p.shape for p in pl_module.net.parameters())

    module, widths = Plain(), Widths()
    before = list(module.net.parameters())
    _, _, trainer = fit(module, callbacks=[widths])
    assert all(a is b for a, b in zip(before, module.net.parameters(), strict=True))
    assert [id(p) for g in trainer.optimizers[0].param_groups for p in g["params"]] == [id(p) for p in before]
    assert sorted(set(widths.seen), reverse=True) == list(dict.fromkeys(widths.seen))
    assert len(set(widths.seen)) == 4  # two on the way, and the last
    assert module.net[0].out_channels == module.net[3].in_channels == 4


def convolutions():
    body = [nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(128, 4))


def normed():
    body = [nn.Sequential(nn.Linear(192, 24), nn.LayerNorm(24), nn.GELU()), nn.Sequential(nn.Linear(24, 16), nn.Tanh())]
    return nn.Sequential(nn.Sequential(nn.Flatten(), *body[0]), body[1], nn.Identity(), nn.Linear(16, 4))


@pytest.mark.parametrize("make", [convolutions, normed])
def test_compared_layers_follow(make):
    def network(seed):
        torch.manual_seed(seed)
        return make().double()

    found = []
    for live in (False, True):
        torch.manual_seed(0)
        module = DistillationModule(
            network(0), network(1), losses={"hint": 1.0}, layers={"0": "0", "1": "1"}, num_classes=4,
        )  # fmt: skip
        _, prune, _ = fit(module, live=live)
        found.append((prune.plan, shrink(module.student, prune.plan)))
    assert found[0][0].hash == found[1][0].hash
    assert gap(found[0][1], found[1][1]) <= 1e-6


def saver(folder):
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=3, save_top_k=-1)


@pytest.mark.parametrize("average", [False, True])
def test_every_checkpoint_resumes_on_the_original_and_on_a_cut_module(tmp_path, average):
    def go(module, **options):
        callbacks = [*([EMAWeightAveraging(decay=0.9)] if average else []), *options.pop("callbacks", [])]
        ordered = OrderedLoader(Places(16), batch_size=4, seed=0)
        return fit(module, callbacks=callbacks, data=ordered, **options)

    whole, prune, _ = go(Plain(), callbacks=[saver(tmp_path)], enable_checkpointing=True)
    expected = copy.deepcopy(whole.state_dict())
    paths = sorted(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem.partition("=")[2]))
    shapes = {torch.load(path, weights_only=True)["state_dict"]["net.0.weight"].shape[0] for path in paths}
    assert len(shapes) > 2
    for path in paths[::2]:
        whole.kept = None  # deep copies take no graph
        for module in (Plain(), whole):
            again, other, _ = go(module, ckpt_path=path)
            assert other.plan.hash == prune.plan.hash
            assert gaps(again.state_dict(), expected) == {}, (path.name, module is whole)


def test_checkpoints_of_any_shape_are_tested_and_loaded(tmp_path):
    module, prune, _ = fit(Plain(), callbacks=[saver(tmp_path)], enable_checkpointing=True)
    for path in sorted(tmp_path.glob("*.ckpt")):
        values = []
        for given in (module, Plain()):
            tester = L.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, precision="64-true")
            values.append(tester.test(given, loader(2), ckpt_path=path, verbose=False)[0]["val"])
            width = torch.load(path, weights_only=True)["state_dict"]["net.0.weight"].shape[0]
            assert given.net[0].weight.shape[0] == given.net[0].out_channels == width
        assert values[0] == values[1]
        loaded = Plain.load_from_checkpoint(path, map_location="cpu")
        assert gap(loaded, module) == 0.0
    assert gap(shrink(loaded, prune.plan), shrink(module, prune.plan)) == 0.0


def test_weights_alone_are_loaded_too_and_the_modules_own_state_has_tensors_only(tmp_path):
    only = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=7, save_top_k=-1, save_weights_only=True)
    module, *_ = fit(Plain(), callbacks=[only], enable_checkpointing=True)
    assert STATE_KEY not in " ".join(module.state_dict())
    widths = []
    for path in sorted(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem.partition("=")[2])):
        loaded = Plain.load_from_checkpoint(path, map_location="cpu")
        widths.append(loaded.net[0].weight.shape[0])
    assert widths == sorted(widths, reverse=True)
    assert (widths[0], widths[-1]) == (6, 4)


def test_who_does_not_import_prune_is_told_to(tmp_path):
    _, _, trainer = fit(Plain())
    trainer.save_checkpoint(tmp_path / "cut.ckpt")
    state = torch.load(tmp_path / "cut.ckpt", weights_only=True)["state_dict"]
    assert f"net.{STATE_KEY}" in state
    code = (
        "import torch; from torch import nn; net = nn.Sequential(nn.Conv2d(3, 8, 3)); whole = nn.Module();"
        f"whole.net = net; whole.load_state_dict(torch.load({str(tmp_path / 'cut.ckpt')!r})['state_dict'])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr
    assert "from lighten import Prune" in said


def test_cuts_that_do_not_hold_are_left_out_and_said():
    class Moody(nn.Module):
        """Counts its filters in evaluation, from some moment on."""

        def __init__(self):
            super().__init__()
            self.conv, self.calls = nn.Conv2d(3, 8, 3), 0

        def forward(self, x):
            y = self.conv(x)
            self.calls += self.training
            return y * self.conv.weight.shape[0] if not self.training and 6 < self.calls < 12 else y

    class Module(Plain):
        def __init__(self):
            super().__init__()
            self.net[0] = Moody().double()

    with pytest.warns(UserWarning, match="masked and shrunk outputs differ.*masked until the next cut"):
        module, prune, _ = fit(Module())
    assert module.net[0].conv.weight.shape[0] == 4
    masked, plan, _ = fit(Module(), live=False)
    assert gap(shrink(module, prune.plan), shrink(masked, plan.plan)) <= 1e-6


def test_what_a_forward_keeps_of_its_widths_is_made_again(tmp_path):
    class Caching(nn.Module):
        """Keeps tensors of its width, in a dict and as an attribute, as LeViT keeps its position biases."""

        def __init__(self):
            super().__init__()
            self.conv, self.cache, self.ones = nn.Conv2d(3, 8, 3), {}, None

        def forward(self, x):
            y = self.conv(x)
            if y.shape[2:] not in self.cache:
                self.cache[y.shape[2:]] = torch.full((y.shape[1], 1, 1), 2.0, dtype=y.dtype)
            if self.ones is None:
                self.ones = torch.ones(y.shape[1], 1, 1, dtype=y.dtype)
            return y * self.cache[y.shape[2:]] * self.ones

    class Module(Plain):
        def __init__(self):
            super().__init__()
            self.net[0] = Caching().double()

    module, prune, _ = fit(Module(), callbacks=[saver(tmp_path)], enable_checkpointing=True)
    assert module.net[0].conv.weight.shape[0] == 4
    masked, plan, _ = fit(Module(), live=False)
    assert gap(shrink(module, prune.plan), shrink(masked, plan.plan)) <= 1e-6
    for path in tmp_path.glob("*.ckpt"):  # of every shape, into the module that has run in another one
        tester = L.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, precision="64-true")
        tester.test(module, loader(1), ckpt_path=path, verbose=False)


def test_bad_settings_are_refused_in_a_line():
    with pytest.raises(UserError, match="cuts=0"):
        Prune(0.5, live=True, cuts=0)
    with pytest.raises(UserError, match="what is cut cannot grow again"):
        Prune(0.5, live=True, soft=True)
    fit(Plain(), prune=Prune(0.5, live=True, cuts=40, module="net"), fast_dev_run=True)  # one step has no ramp
    with pytest.raises(UserError, match="cuts=40: the ramp has"):
        fit(Plain(), prune=Prune(0.5, live=True, cuts=40, module="net"))


def test_who_holds_a_view_of_a_parameter_is_named():
    module = Plain()
    module.views = [module.net[0].weight.detach().view(-1)]
    with pytest.raises(UserError, match=r"views\[0\] holds the numbers of the parameter '0.weight'"):
        fit(module)


def test_optimizers_whose_state_cannot_be_cut_are_named():
    class Second(Plain):
        def configure_optimizers(self):
            return LBFGS(self.parameters(), lr=0.1, max_iter=2)

    with pytest.raises(UserError, match="the optimizer LBFGS keeps"):
        fit(Second())


def test_a_second_fit_goes_on_from_what_the_first_has_cut():
    module, first, _ = fit(Plain())
    assert live_cut_of(module.net) is not None
    masked, before, _ = fit(Plain(), live=False)
    again = Prune(0.4, begin=0.1, end=0.7, live=True, cuts=2, module="net")
    fit(module, prune=again)
    other = Prune(0.4, begin=0.1, end=0.7, module="net")
    fit(masked, prune=other)
    assert before.plan.hash == first.plan.hash
    assert again.plan.hash == other.plan.hash
    assert gap(shrink(module, again.plan), shrink(masked, other.plan)) <= 1e-6
