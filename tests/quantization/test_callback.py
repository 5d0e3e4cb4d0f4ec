"""The callback in real fits: modules that know nothing of lighten, resume, test from a checkpoint, bad settings."""

import copy
from itertools import pairwise
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, SingleDeviceStrategy
from quantization_nets import Residual
from torch import nn

from lighten.delivery.export.targets import export_onnx
from lighten.errors import UserError
from lighten.quantization.activation_quantizers import Stage, quantizers_of
from lighten.quantization.calibrate import calibrate_
from lighten.quantization.callback import Quantize
from lighten.quantization.insert import quantize_
from lighten.quantization.integer_layers import convert

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "gradient_clip_val": 1.0,
}


class Plain(L.LightningModule):
    """A user's module: it has never heard of lighten, and calls its parts itself."""

    def __init__(self, keyword: bool = False) -> None:
        super().__init__()
        self.backbone = Residual()
        self.keyword = keyword

    def forward(self, x):
        return self.backbone(x=x) if self.keyword else self.backbone(x)

    def training_step(self, batch, index):
        return F.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch, index):
        self.log("logits", self(batch[0]).double().sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def loader(batches=10):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batches * 8, 1, 8, 8, generator=generator)
    y = torch.randint(0, 3, (batches * 8,), generator=generator)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)


def fit(module, quantize, *, steps=20, ckpt_path=None, stop=None, **settings):
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(max_epochs=steps // 10, callbacks=[quantize, *([stop] if stop else [])], **QUIET | settings)
    trainer.fit(module, loader(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


class Watch(L.Callback):
    """Writes down stage and ranges after each step."""

    def __init__(self):
        self.stages, self.highs = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        quantizers = quantizers_of(pl_module)
        self.stages.append((int(quantizers.stage), quantizers.observing))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.highs.append(quantizers_of(pl_module).high.clone())


def test_stages_follow_the_fractions_of_the_fit():
    watch, module = Watch(), Plain()
    trainer = fit(module, Quantize(begin=0.25, freeze=0.75), stop=watch)
    assert [stage for stage, _ in watch.stages] == [0] * 5 + [1] + [2] * 14
    assert [observing for _, observing in watch.stages] == [False] * 5 + [True] * 10 + [False] * 5
    assert all(torch.equal(high, watch.highs[14]) for high in watch.highs[14:])
    assert not torch.equal(watch.highs[13], watch.highs[14])
    assert trainer.logged_metrics["quantize/enabled"] == 1
    assert trainer.logged_metrics["quantize/frozen"] == 1


def test_norm_statistics_are_frozen_from_begin_on():
    class Statistics(L.Callback):
        def __init__(self):
            self.means = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.means.append(pl_module.backbone.norm1.running_mean.clone())

    watch = Statistics()
    fit(Plain(), Quantize(begin=0.5), stop=watch)
    assert not torch.equal(watch.means[8], watch.means[9])
    assert all(torch.equal(mean, watch.means[9]) for mean in watch.means[10:])


def test_steps_that_frozen_statistics_may_not_bear_are_warned_of():
    with pytest.warns(UserWarning, match="set gradient_clip_val=1.0"):
        fit(Plain(), Quantize(begin=0.5), steps=10, gradient_clip_val=None)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_steps_without_momentum_are_not(optimizer):
    class Other(Plain):
        def configure_optimizers(self):
            return optimizer(self.parameters(), lr=1e-3)

    fit(Other(), Quantize(begin=0.5), steps=10, gradient_clip_val=None)


def test_training_goes_on_through_the_fake_quantizers():
    module = Plain()
    before = {n: p.clone() for n, p in module.named_parameters()}
    fit(module, Quantize(begin=0.0))
    assert all(not torch.equal(p, before[n]) for n, p in module.named_parameters())


@pytest.mark.parametrize("keyword", [False, True])
def test_named_part_of_a_module_is_quantized_alone(keyword):
    module = Plain(keyword)
    fit(module, Quantize(begin=0.5, module="backbone"))
    assert quantizers_of(module.backbone).stage == Stage.ON
    assert not hasattr(module, "activation_ranges")


def test_resume_ends_with_the_same_bits(tmp_path):
    straight, first, resumed = Plain(), Plain(), Plain()
    first.load_state_dict(straight.state_dict())
    fit(straight, Quantize(begin=0.25, freeze=0.75))

    class Save(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    fit(first, Quantize(begin=0.25, freeze=0.75), stop=Save())
    fit(resumed, Quantize(begin=0.25, freeze=0.75), ckpt_path=tmp_path / "half.ckpt")
    for (name, ours), theirs in zip(resumed.state_dict().items(), straight.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_checkpoint_is_tested_as_it_was_trained(tmp_path):
    module = Plain()
    trainer = fit(module, Quantize(begin=0.25))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    trained = trainer.test(module, loader(), verbose=False)[0]["logits"]
    fresh, other = Plain(), L.Trainer(callbacks=[Quantize(begin=0.25)], **QUIET)
    tested = other.test(fresh, loader(), ckpt_path=tmp_path / "end.ckpt", verbose=False, weights_only=True)
    assert tested[0]["logits"] == trained
    assert quantizers_of(fresh).stage == Stage.ON


def test_evaluation_moves_no_range():
    module = Plain()
    trainer = fit(module, Quantize(begin=0.25, freeze=1.0))
    high = quantizers_of(module).high.clone()
    trainer.test(module, loader(), verbose=False)
    assert torch.equal(quantizers_of(module).high, high)


def test_non_finite_activations_stop_the_fit_by_name():
    class Poisoned(Plain):
        def training_step(self, batch, index):
            if index == 3:
                with torch.no_grad():
                    self.backbone.conv2.bias.fill_(torch.nan)
            return super().training_step(batch, index)

    with pytest.raises(UserError, match=r"at 'backbone\.\S+' are not finite") as caught:
        fit(Poisoned(), Quantize(begin=0.0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"begin": 1.0}, "begin=1.0: expected"),
        ({"begin": float("nan")}, "begin=nan: expected"),
        ({"begin": 0.5, "freeze": 0.4}, "freeze=0.4: expected at least begin=0.5"),
    ],
)
def test_bad_settings_are_refused_at_once(settings, message):
    with pytest.raises(UserError, match=message):
        Quantize(**settings)


def test_a_fit_too_short_for_its_begin_is_refused_before_the_first_step():
    module = Plain()
    before = {n: p.clone() for n, p in module.named_parameters()}
    with pytest.raises(UserError, match=r"begin=0.95: leaves none of the fit's 10 steps"):
        fit(module, Quantize(begin=0.95, freeze=1.0), steps=10)
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters())


class Synced(SingleDeviceStrategy):
    """Replaces batch norms at both ends of a fit, as ``sync_batchnorm`` does where there are several processes."""

    def setup(self, trainer):
        if trainer.state.fn == "fit":
            self.model = TorchSyncBatchNorm().apply(self.model)
        super().setup(trainer)

    def teardown(self):
        self.model = TorchSyncBatchNorm().revert(self.model)
        super().teardown()


def test_synchronised_norms_are_folded_as_others_are(tmp_path):
    class Kinds(L.Callback):
        def on_train_end(self, trainer, pl_module):
            self.during = type(pl_module.backbone.norm1)

    plain, synced, kinds = Plain(), Plain(), Kinds()
    synced.load_state_dict(plain.state_dict())
    fit(plain, Quantize(begin=0.5))
    trainer = fit(synced, Quantize(begin=0.5), stop=kinds, strategy=Synced("cpu"))
    assert issubclass(kinds.during, nn.SyncBatchNorm)
    assert not isinstance(synced.backbone.norm1, nn.SyncBatchNorm)
    state, other = plain.state_dict(), synced.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)

    images = loader().dataset.tensors[0]
    with torch.no_grad():
        logits = plain.eval()(images)
        assert torch.equal(synced.eval()(images), logits)
        assert torch.equal(convert(synced)(images), logits)
    tested = trainer.test(synced, loader(), verbose=False)[0]["logits"]
    assert tested == pytest.approx(logits.double().sum().item() / 10)
    export_onnx(synced, images[:2], tmp_path / "synced.onnx")
    export_onnx(plain, images[:2], tmp_path / "plain.onnx")
    assert (tmp_path / "synced.onnx").stat().st_size == (tmp_path / "plain.onnx").stat().st_size


def test_a_model_born_with_synchronised_norms_is_placed_and_folded_alike():
    plain = Residual()
    born = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
    images = loader().dataset.tensors[0]
    for model in (plain, born):
        calibrate_(quantize_(model, example_input=images[:2]), [images])
    assert quantizers_of(born).names == quantizers_of(plain).names
    assert torch.equal(quantizers_of(born).high, quantizers_of(plain).high)
    assert torch.equal(convert(born)(images), convert(plain)(images))


def test_what_cannot_be_folded_is_refused_in_a_norms_place():
    class Swap(L.Callback):
        def setup(self, trainer, pl_module, stage):
            pl_module.backbone.norm1 = nn.Identity()

    with pytest.raises(UserError, match=r"'backbone\.norm1' was a batch norm and is now Identity") as caught:
        fit(Plain(), Quantize(begin=0.5), steps=10, stop=Swap())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_strategies_that_flatten_weights_are_refused_by_name(strategy):
    trainer = SimpleNamespace(strategy=strategy.__new__(strategy))
    with pytest.raises(UserError, match=f"{strategy.__name__} keeps flat pieces"):
        Quantize().setup(trainer, Plain(), "fit")


def test_ranges_move_once_an_optimizer_step_and_take_all_its_batches_in():
    whole, parts = Watch(), Watch()
    one, other = Plain(), Plain()
    other.load_state_dict(one.state_dict())
    fit(one, Quantize(begin=0.0, freeze=1.0), stop=whole, steps=10)
    fit(other, Quantize(begin=0.0, freeze=1.0), stop=parts, steps=10, accumulate_grad_batches=3)
    moved = [not torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairwise(parts.highs)]
    assert moved == [False, True, False, False, True, False, False, True, True]  # the last batch is a step of its own
    assert [int(stage) for stage, _ in parts.stages] == [1, 1, 1, 2, 2, 2, 2, 2, 2, 2]
    assert all(observing for _, observing in parts.stages[:9])
    first = loader().dataset.tensors[0][:24]
    place = quantizers_of(other).names.index(next(n for n in quantizers_of(other).names if n.endswith(".input")))
    assert parts.highs[2][place] == first.max()
    assert whole.highs[0][place] == first[:8].max()


def test_a_fit_that_stops_early_says_that_it_is_not_quantized():
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 3

    with pytest.raises(
        UserError, match=r"stopped after \d+ of \d+ steps, before begin=0.5 of Quantize: the model is still"
    ):
        fit(Plain(), Quantize(begin=0.5), steps=10, stop=Stop(), min_steps=1, min_epochs=0)


def test_a_module_that_makes_its_data_in_setup_makes_them_once():
    class Late(Plain):
        made = 0

        def setup(self, stage):
            self.data, self.made = loader(2), self.made + 1

        def train_dataloader(self):
            return self.data

    late = Late()
    L.Trainer(max_epochs=1, callbacks=[Quantize(begin=0.5)], **QUIET).fit(late)
    assert quantizers_of(late).stage == Stage.ON
    assert late.made == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"module": "bakbone"}, "did you mean 'backbone'"),
        ({"exclude": ["layer7"]}, "exclude='layer7' matches no layer"),
        ({"weight_bits": 9}, "weight_bits=9: expected"),
    ],
)
def test_names_that_match_nothing_are_refused_before_the_first_step(settings, message):
    module = Plain()
    with pytest.raises(UserError, match=message):
        fit(module, Quantize(**settings))
    assert isinstance(module.backbone, nn.Module)


@pytest.mark.parametrize("ranges", ["min_max", "percentile", "mse", "entropy", "lsq"])
def test_every_rule_trains_freezes_and_resumes_to_the_same_bits(ranges, tmp_path):
    class Save(Watch):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    watch, straight, resumed = Save(), Plain(), Plain()
    settings = {"begin": 0.1, "freeze": 0.75, "ranges": ranges}
    fit(straight, Quantize(**settings), stop=watch)
    fit(resumed, Quantize(**settings), ckpt_path=tmp_path / "half.ckpt")
    assert not torch.equal(watch.highs[3], watch.highs[14])
    assert torch.equal(watch.highs[15], watch.highs[19])
    for (name, ours), theirs in zip(resumed.state_dict().items(), straight.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_learned_steps_go_down_the_slope_of_the_loss():
    module = Plain()
    quantize = Quantize(begin=0.0, freeze=1.0, ranges="lsq")

    class Slope(L.Callback):
        def __init__(self):
            self.agree = []

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            quantizers = quantizers_of(pl_module)
            self.gradient = None if quantizers.observer._gradient is None else quantizers.observer._gradient.clone()
            self.high = quantizers.high.clone()

        def on_train_batch_end(self, trainer, pl_module, *_):
            if self.gradient is not None and not self.agree:  # the first step of Adam goes against the sign
                moved = quantizers_of(pl_module).high - self.high
                sure = self.gradient.abs() > 1e-9
                self.agree.append(bool((moved.sign() == -self.gradient.sign())[sure].all()) and bool(sure.any()))

    slope = Slope()
    L.seed_everything(0, verbose=False)
    L.Trainer(max_epochs=1, callbacks=[quantize, slope], **QUIET).fit(module, loader())
    assert slope.agree == [True]


@pytest.mark.parametrize("ranges", ["mse", "lsq"])
def test_non_finite_activations_stop_every_rule(ranges):
    class Poisoned(Plain):
        def training_step(self, batch, index):
            if index == 3:
                with torch.no_grad():
                    self.backbone.conv2.bias.fill_(torch.nan)
            return super().training_step(batch, index)

    with pytest.raises(UserError, match=r"at 'backbone\.\S+' are not finite"):
        fit(Poisoned(), Quantize(begin=0.0, ranges=ranges))
