import copy
import math
import warnings
from itertools import pairwise
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lighten.errors import UserError
from lighten.pruning import Plan, latency, mask_, plan_pruning, shrink
from lighten.pruning.callback import Prune
from lighten.schedule import ramp
from lighten.training.order import OrderedLoader


class Plain(L.LightningModule):
    """A module that has never heard of pruning."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten()
        )
        self.head = nn.Linear(96, 4)

    def forward(self, x):
        return self.head(self.backbone(x))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val", F.cross_entropy(self(batch[0]), batch[1]))

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, nesterov=True)


class ByHand(Plain):
    """Two optimizers, stepped by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.05) for part in (self.backbone, self.head)]


def loader(batches=10):
    draw = torch.Generator().manual_seed(1)
    images, labels = (
        torch.randn(4 * batches, 3, 8, 8, generator=draw),
        torch.randint(0, 4, (4 * batches,), generator=draw),
    )
    return DataLoader(TensorDataset(images, labels), batch_size=4)


class Places:
    """The loader's data by (epoch, sample), as a loader that a resumed fit takes up in mid-epoch wants them."""

    def __init__(self, batches):
        self.tensors = loader(batches).dataset.tensors

    def __len__(self):
        return len(self.tensors[0])

    def __getitems__(self, places):
        chosen = [sample for _, sample in places]
        return tuple(tensor[chosen] for tensor in self.tensors)


class Watch(L.Callback):
    """Notes, after every batch, what is zero and what the plan says."""

    def __init__(self, prune):
        self.prune = prune
        self.zeros, self.hashes, self.sparsity, self.steps = [], [], [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        weight = pl_module.backbone[0].weight
        self.zeros.append(frozenset((weight == 0).flatten(1).all(1).nonzero().flatten().tolist()))
        self.hashes.append(self.prune.plan.hash)
        self.sparsity.append(self.prune.plan.sparsity)
        self.steps.append(trainer.global_step)


def run(prune, module=None, *, batches=10, data=None, ckpt_path=None, **options):
    module = module if module is not None else Plain()
    watch = Watch(prune)
    settings = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"} | options
    extra = settings.pop("callbacks", [])
    trainer = L.Trainer(
        **settings, callbacks=[prune, watch, *extra], enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(module, data or loader(batches), loader(2), ckpt_path=ckpt_path)
    return module, trainer, watch


def saver(folder, every):
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=every, save_top_k=-1)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        warnings.filterwarnings("ignore", message=".*LeafSpec")
        warnings.filterwarnings("ignore", message=".*number of training batches")
        warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint")
        yield


def test_ends_with_the_asked_share_zero_and_shrinks(capsys):
    module, _, watch = run(prune := Prune(0.5, begin=0.1, end=0.6))
    assert prune.plan.sparsity == 0.5
    assert {row.name: row.width_after for row in prune.plan.groups} == {"backbone.0": 4, "backbone.3": 3}
    assert len(watch.zeros[-1]) == 4
    assert set(prune.plan.groups[0].removed) == watch.zeros[-1]
    module.eval()
    small = shrink(module, prune.plan)
    inputs = next(iter(loader()))[0]
    with torch.no_grad():
        assert (small(inputs) - module(inputs)).abs().max() <= 1e-5
    assert small.head.in_features == 48
    assert "Pruning plan: 50.0% of 14 channels" in capsys.readouterr().out


def halved_by(share):
    """Return the sparsity where this share of half the 8 and half the 6 channels is gone, rounded, halves down."""
    return sum(math.ceil(share * count - 0.5 - 1e-9) for count in (4, 3)) / 14


def test_rises_as_the_ramp_says_and_never_takes_back():
    _, _, watch = run(Prune(0.5, begin=0.2, end=0.8))
    assert watch.steps == list(range(1, 21))
    for before, after in pairwise(watch.zeros):
        assert before <= after
    for step, sparsity in zip(watch.steps, watch.sparsity, strict=True):
        assert sparsity == halved_by(ramp(step / 20, begin=0.2, end=0.8))
    assert watch.sparsity[3] == 0
    assert watch.sparsity[15] == 0.5


def test_the_optimizer_revives_nothing():
    """Momentum and gradients push the masked weights at every step; after it they are zero again."""
    module, _, watch = run(prune := Prune(0.5, begin=0.0, end=0.2))
    masked = copy.deepcopy(module)
    mask_(masked, prune.plan)
    for (name, ours), theirs in zip(module.named_parameters(), masked.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert all(len(zeros) == 4 for zeros in watch.zeros[4:])


@pytest.mark.parametrize(("begin", "end"), [(0.0, 0.0), (0.5, 0.5), (0.9, 1.0), (1.0, 1.0), (0.97, 0.98)])
def test_the_last_update_lands_wherever_the_ramp_ends(begin, end):
    _, _, watch = run(prune := Prune(0.5, begin=begin, end=end))
    assert prune.plan.sparsity == 0.5
    assert len(watch.zeros[-1]) == 4


def test_the_last_update_lands_where_fewer_steps_were_taken_than_foreseen():
    """Two optimizers, of which the trainer counts each step, and a last batch that is one short."""
    module, _, _ = run(prune := Prune(0.5, begin=0.1, end=1.0), ByHand(), batches=5)
    assert prune.plan.sparsity == 0.5
    small = shrink(module, prune.plan)
    assert small.backbone[0].out_channels == 4


def test_accumulated_gradients_count_as_one_step():
    _, trainer, watch = run(prune := Prune(0.5, begin=0.0, end=0.5), accumulate_grad_batches=4, batches=8)
    assert trainer.global_step == 4
    assert prune.plan.sparsity == 0.5
    changes = [i for i, (a, b) in enumerate(pairwise(watch.hashes)) if a != b]
    assert all(watch.steps[i + 1] > watch.steps[i] for i in changes)
    assert changes


def test_resumes_at_any_step_to_the_same_end(tmp_path):
    """Before the ramp, between two updates, right after one, and after its end."""

    def fit(**options):
        data = OrderedLoader(Places(10), batch_size=4, seed=0)
        return run(Prune(0.5, begin=0.1, end=0.8, scope="global"), data=data, **options)

    straight, _, whole = fit(callbacks=[saver(tmp_path, 1)], enable_checkpointing=True)
    for stop in (1, 9, 13, 17):
        resumed, _, rest = fit(ckpt_path=tmp_path / f"step={stop}.ckpt")
        assert rest.steps == list(range(stop + 1, 21))
        assert rest.hashes == whole.hashes[stop:]
        assert rest.zeros == whole.zeros[stop:]
        for (name, a), b in zip(straight.named_parameters(), resumed.parameters(), strict=True):
            assert torch.equal(a, b), name


def test_state_is_plain_and_weights_only(tmp_path):
    _, trainer, _ = run(prune := Prune(0.5, module="backbone"))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    state = torch.load(tmp_path / "end.ckpt", weights_only=True)["callbacks"]["Prune{'module': 'backbone'}"]
    assert Plan.from_json(state["plan"]) == prune.plan


def test_names_are_those_of_the_pruned_part():
    module, _, _ = run(prune := Prune(0.5, module="backbone", begin=0.0, end=0.5))
    assert [row.name for row in prune.plan.groups] == ["0"]
    assert prune.plan.frozen["3"] == "is the network's output"
    assert shrink(module.backbone, prune.plan)[0].out_channels == 4


@pytest.mark.parametrize("stage", ["test", "validate"])
def test_testing_changes_nothing(stage, tmp_path):
    module, trainer, _ = run(trained := Prune(0.5))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    other, prune = Plain(), Prune(0.5)
    fresh = L.Trainer(
        callbacks=[prune], logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False
    )
    getattr(fresh, stage)(other, loader(2), ckpt_path=tmp_path / "end.ckpt", weights_only=True)
    assert prune.plan == trained.plan
    for (name, a), b in zip(module.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b[1]), name
    before = copy.deepcopy(other.state_dict())
    getattr(fresh, stage)(other, loader(2))
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())


def test_logs_what_is_asked_and_what_is_so(tmp_path):
    logger = CSVLogger(tmp_path)
    _, _, watch = run(Prune(0.5, begin=0.2, end=0.8), logger=logger, log_every_n_steps=1)
    rows = [line.split(",") for line in (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()]
    columns = {name: rows[0].index(name) for name in ("step", "prune/amount", "prune/sparsity")}
    logged = [{name: row[i] for name, i in columns.items()} for row in rows[1:] if row[columns["prune/amount"]]]
    assert [float(row["prune/sparsity"]) for row in logged] == pytest.approx(watch.sparsity)
    asked = [0.5 * ramp(step / 20, begin=0.2, end=0.8) for step in watch.steps]
    assert [float(row["prune/amount"]) for row in logged] == pytest.approx(asked)


def test_a_second_fit_begins_anew():
    prune = Prune(0.5, begin=0.1, end=0.6)
    run(prune)
    _, _, watch = run(prune)
    assert watch.sparsity[0] == 0
    assert prune.plan.sparsity == 0.5


def test_stopping_early_says_how_far_it_came():
    stop = EarlyStopping("val", patience=1, min_delta=100.0)
    prune = Prune(0.5, begin=0.1, end=0.9)
    with pytest.raises(
        UserError, match=r"stopped after 20 of 60 steps, before end=0.9 of Prune: \d+.\d% of the channels"
    ):
        run(prune, max_epochs=6, callbacks=[stop])
    assert prune.plan.sparsity < 0.5


def test_the_other_order_of_class_swaps_gives_the_same_masks():
    class Swapped(nn.Conv2d):
        pass

    class Swap(L.Callback):
        def setup(self, trainer, pl_module, stage):
            for module in pl_module.modules():
                if type(module) is nn.Conv2d:
                    module.__class__ = Swapped

    plans = []
    for order in (0, 1):
        prune = Prune(0.5, begin=0.0, end=0.5)
        trainer = L.Trainer(
            max_epochs=1,
            callbacks=[prune, Swap()][:: 1 - 2 * order],
            logger=False,
            enable_checkpointing=False,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = Plain()
        trainer.fit(module, loader(), loader(2))
        plans.append(prune.plan.hash)
        assert type(shrink(module, prune.plan).backbone[0]) is Swapped
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"amount": 1.0}, "amount=1.0"),
        ({"amount": math.nan}, "amount=nan"),
        ({"amount": 0.5, "begin": 0.6, "end": 0.5}, "end=0.5: expected at least begin=0.6"),
        ({"amount": 0.5, "begin": -0.1}, "begin=-0.1"),
        ({"amount": 0.5, "score": "l3"}, "score='l3': "),
        ({"amount": 0.5, "scope": "all"}, "scope='all': "),
        ({"amount": 0.5, "align": 0}, "align=0"),
    ],
    ids=str,
)
def test_settings_are_refused_at_once(settings, says):
    with pytest.raises(UserError, match=says):
        Prune(**settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"amount": 0.5, "module": "bakbone"}, "module='bakbone': .*did you mean 'backbone'"),
        ({"amount": 0.5, "exclude": ["backbone.9"]}, r"exclude='backbone.9' matches no layer"),
        ({"amount": 0.97}, r"amount=0.97 would empty backbone.0 \(8 channels\)"),
        ({"amount": 0.5, "module": "head"}, "Linear has no group of channels that can be pruned"),
    ],
    ids=str,
)
def test_settings_that_the_model_contradicts_are_refused_before_training(settings, says):
    module = Plain()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(UserError, match=says):
        run(Prune(**settings), module)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_a_compiled_part_is_refused():
    module = Plain()
    module.backbone = torch.compile(module.backbone)
    with pytest.raises(UserError, match="wrapped in OptimizedModule"):
        run(Prune(0.5), module)


def test_weights_that_are_no_numbers_stop_the_fit():
    class Burst(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 5:
                pl_module.backbone[3].weight.data.fill_(torch.inf)

    with pytest.raises(UserError, match=r"weights of backbone.\d are not finite"):
        run(Prune(0.5), callbacks=[Burst()])


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    run(Prune(0.5), callbacks=[saver(tmp_path, 5)], enable_checkpointing=True)
    with pytest.raises(UserError, match="the checkpoint's plan has groups"):
        run(Prune(0.5, exclude=["backbone.0"]), ckpt_path=tmp_path / "step=5.ckpt")


def final(prune):
    return {row.name: row.width_after for row in prune.plan.groups}


@pytest.mark.parametrize("schedule", ["linear", "exponential", "cubic"])
def test_follows_the_schedule_that_was_asked_for(schedule):
    _, _, watch = run(Prune(0.5, begin=0.0, end=1.0, schedule=schedule))
    for step, sparsity in zip(watch.steps, watch.sparsity, strict=True):
        assert sparsity == halved_by(ramp(step / 20, begin=0.0, end=1.0, shape=schedule))
    assert watch.sparsity[-1] == 0.5


@pytest.mark.parametrize(("begin", "steps"), [(0.0, 0), (0.5, 9)])
def test_one_shot_prunes_all_of_it_at_begin(begin, steps):
    _, _, watch = run(Prune(0.5, begin=begin, schedule="one_shot"))
    assert watch.sparsity == [0.0] * steps + [0.5] * (20 - steps)


def test_soft_filters_may_grow_again_and_be_chosen_anew_until_the_end():
    _, _, watch = run(prune := Prune(0.5, begin=0.3, end=0.8, soft=True, schedule="one_shot"), batches=40)
    assert any(not zeros for zeros in watch.zeros[24:63])  # between two updates the optimizer has revived them
    assert all(len(zeros) == 4 for zeros in watch.zeros[63:])
    assert prune.plan.sparsity == 0.5


def test_soft_pruning_lets_go_of_what_has_grown():
    class Grow(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 40:
                self.gone = prune.plan.groups[0].removed
                pl_module.backbone[0].weight.data[list(self.gone)] = 5.0 * torch.randn(4, 3, 3, 3)

    prune, grow = Prune(0.5, begin=0.3, end=0.8, soft=True, schedule="one_shot"), Grow()
    run(prune, batches=40, callbacks=[grow])
    assert set(prune.plan.groups[0].removed).isdisjoint(grow.gone)


def test_soft_resumes_to_the_same_end(tmp_path):
    def fit(**options):
        data = OrderedLoader(Places(10), batch_size=4, seed=0)
        return run(Prune(0.5, begin=0.1, end=0.8, soft=True), data=data, **options)

    straight, _, whole = fit(callbacks=[saver(tmp_path, 1)], enable_checkpointing=True)
    for stop in (7, 16):
        resumed, _, rest = fit(ckpt_path=tmp_path / f"step={stop}.ckpt")
        assert rest.hashes == whole.hashes[stop:]
        assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


class Grads(L.Callback):
    """Adds up, by hand, what first-order scores are made of."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        w = pl_module.backbone[3].weight
        self.steps.append((w * w.grad).detach().flatten(1).sum(1).square())


def test_taylor_adds_up_the_gradients_since_the_last_update():
    grads = Grads()
    run(prune := Prune(0.5, score="taylor", begin=0.0, end=0.5, schedule="linear"), callbacks=[grads])
    row = prune.plan.groups[1]  # ten updates in ten steps, the last from the tenth step's gradient alone
    assert [row.scores[i] for i in row.kept] == pytest.approx(grads.steps[9][list(row.kept)].tolist(), rel=1e-5)
    prune_early = Prune(0.5, score="taylor", begin=0.2, end=0.2)
    grads = Grads()
    run(prune_early, callbacks=[grads])
    expected = torch.stack(grads.steps[:4]).sum(0)
    assert prune_early.plan.groups[1].scores == pytest.approx(expected.tolist(), rel=1e-5)
    assert prune.plan.sparsity == prune_early.plan.sparsity == 0.5


def test_taylor_resumes_with_the_gradients_that_were_seen(tmp_path):
    def fit(**options):
        data = OrderedLoader(Places(10), batch_size=4, seed=0)
        return run(Prune(0.5, score="taylor", begin=0.3, end=0.8), data=data, **options)

    _, _, whole = fit(callbacks=[saver(tmp_path, 1)], enable_checkpointing=True)
    for stop in (3, 9):
        _, _, rest = fit(ckpt_path=tmp_path / f"step={stop}.ckpt")
        assert rest.hashes == whole.hashes[stop:]


def test_sensitivity_is_probed_when_the_first_channels_go_and_kept(tmp_path):
    def fit(**options):
        data = OrderedLoader(Places(10), batch_size=4, seed=0)
        prune = Prune(0.4, scope="sensitivity", begin=0.2, end=0.8)
        return prune, *run(prune, data=data, **options)

    prune, module, _, whole = fit(callbacks=[saver(tmp_path, 1)], enable_checkpointing=True)
    assert prune.plan.sparsity == 6 / 14  # of whole channels the nearest to 0.4
    assert all(len(row.curve) > 3 for row in prune.plan.groups)
    assert shrink(module, prune.plan)
    for stop in (2, 9):
        _, _, _, rest = fit(ckpt_path=tmp_path / f"step={stop}.ckpt")
        assert rest.hashes == whole.hashes[stop:]


@pytest.mark.parametrize("target", ["macs", "parameters"])
def test_targets_are_met_at_the_end(target):
    _, _, _ = run(prune := Prune(0.6, target=target, scope="global"))
    work = {  # of the convolutions and the linear layer at these widths
        "macs": lambda a, b: 36 * 27 * a + 16 * 9 * a * b + 64 * b,
        "parameters": lambda a, b: (27 + 1 + 2) * a + (9 * a + 1) * b + 64 * b + 4,
    }[target]
    a, b = final(prune).values()
    saved = {(a, b): 1 - work(a, b) / work(8, 6) for a in range(1, 9) for b in range(1, 7)}
    assert prune.plan.saved[target] == pytest.approx(saved[a, b], abs=1e-9)
    beside = [saved[pair] for pair in ((a - 1, b), (a + 1, b), (a, b - 1), (a, b + 1)) if pair in saved]
    assert abs(saved[a, b] - 0.6) == min(abs(share - 0.6) for share in (saved[a, b], *beside))


def test_averaged_weights_are_masked_too():
    from lightning.pytorch.callbacks import EMAWeightAveraging

    module, _, _ = run(prune := Prune(0.5, begin=0.5, end=0.8), callbacks=[EMAWeightAveraging(decay=0.9)])
    masked = copy.deepcopy(module)
    mask_(masked, prune.plan)
    for (name, ours), theirs in zip(module.named_parameters(), masked.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_works_in_other_precisions(precision):
    module, _, watch = run(prune := Prune(0.5), precision=precision, gradient_clip_val=0.1)
    assert len(watch.zeros[-1]) == 4
    assert shrink(module, prune.plan).backbone[0].out_channels == 4


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_a_module_compiled_in_place_is_pruned_as_any_other():
    module = Plain()
    module.backbone.compile(backend="aot_eager")
    module, _, watch = run(prune := Prune(0.5, begin=0.0, end=0.5), module, batches=3)
    assert len(watch.zeros[-1]) == 4
    assert final(prune) == {"backbone.0": 4, "backbone.3": 3}


def test_a_learning_rate_schedule_and_a_second_optimizer_change_nothing_of_the_ramp():
    class Scheduled(Plain):
        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    _, _, watch = run(Prune(0.5, begin=0.2, end=0.8), Scheduled())
    _, _, other = run(Prune(0.5, begin=0.2, end=0.8))
    assert watch.sparsity == other.sparsity


def test_a_latency_is_settled_before_training(monkeypatch):
    """By a clock on which a model takes as long as it has parameters."""
    monkeypatch.setattr(latency, "_session", lambda model, *_: sum(p.numel() for p in model.parameters()))
    monkeypatch.setattr(latency, "interleaved", lambda runs, **_: runs)
    module, _, _ = run(prune := Prune(0.5, target="latency", begin=0.0, end=0.5), batches=3)
    small, whole = (sum(p.numel() for p in model.parameters()) for model in (shrink(module, prune.plan), module))
    assert prune.plan.saved["latency"] == 1 - small / whole
    assert prune.plan.saved["latency"] == pytest.approx(0.5, abs=0.1)  # a channel is a tenth
    assert prune.plan.saved == prune.preview.saved


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy])
def test_strategies_that_shard_weights_are_refused_by_name(strategy):
    trainer = SimpleNamespace(strategy=strategy.__new__(strategy))
    with pytest.raises(UserError, match=f"needs whole weights on every device, {strategy.__name__} shards them"):
        Prune(0.5).setup(trainer, Plain(), "fit")


def test_synchronised_norms_are_masked_and_cut_as_others_are(monkeypatch):
    """Nothing is tried in training mode, in which such a norm would wait for ranks that are not there."""
    forward, modes = nn.SyncBatchNorm.forward, []

    def alone(norm, x):
        modes.append(norm.training)
        return forward(norm, x)

    monkeypatch.setattr(nn.SyncBatchNorm, "forward", alone)
    plain, images = Plain(), torch.randn(2, 3, 8, 8)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
    plan, expected = (plan_pruning(model, images, 0.5) for model in (synced, plain))
    assert plan == expected
    assert modes
    assert not any(modes)
    small = shrink(synced, plan)
    assert isinstance(small.backbone[1], nn.SyncBatchNorm)
    assert (small.backbone[1].num_features, len(small.backbone[1].running_var)) == (4, 4)
    assert torch.equal(small.eval()(images), shrink(plain, expected).eval()(images))


def test_a_forward_that_fails_only_in_training_is_noticed_beside_a_synchronised_norm():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(1, 4, 1), nn.SyncBatchNorm(4), nn.Conv2d(4, 2, 1)
            self.tail = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))

        def forward(self, x):
            x = self.norm(self.conv(x))
            return self.tail(self.head(x.view(len(x), 4, -1, 1) if self.training else x))

    model, images = Fixed(), torch.randn(2, 1, 3, 1)
    assert "in training mode" in plan_pruning(model, images, 0.5).frozen["conv"]
