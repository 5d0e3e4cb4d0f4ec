"""What a part is called with is what the module's own step calls it with, and the look leaves nothing behind."""

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.transformer import LightningTransformer, Transformer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lighten import DistillationModule, Prune, Quantize, UserError, mask_, shrink
from lighten.quantization.activation_quantizers import Stage, quantizers_of
from lighten.training.example_inputs import example_call, example_calls, find_part
from lighten.utils.compression import record_of

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
LABELS = torch.arange(24) % 3
INPUTS = torch.randn(24, 5, generator=torch.Generator().manual_seed(0)) + LABELS.view(-1, 1)


def loader(*tensors, **settings):
    return DataLoader(TensorDataset(*(tensors or (INPUTS, LABELS))), batch_size=8, **settings)


def net():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def trainer(*callbacks, **settings):
    given = {"max_epochs": 2, "logger": False, "enable_checkpointing": False}
    return L.Trainer(**{**QUIET, **given, **settings}, callbacks=list(callbacks))


class Base(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = net()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


class Tutorial(Base):
    """Without forward, as in Lightning's first tutorial."""

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss, prog_bar=True)
        return loss

    def test_step(self, batch, batch_idx):
        self.log("test", F.cross_entropy(self.net(batch[0]), batch[1]))


class Joined(Base):
    """As most that wrap a model of transformers: the batch goes in whole, and a loss comes out."""

    def __init__(self):
        super().__init__()
        self.net = Scored()

    def training_step(self, batch, batch_idx):
        return self.net(**batch)["loss"]


class Scored(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = net()

    def forward(self, input_values, labels=None):
        logits = self.body(input_values)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits} if labels is not None else {"logits": logits}


class Configured(Tutorial):
    """Makes its layers in a hook, again at each call."""

    def __init__(self):
        L.LightningModule.__init__(self)
        self.net = None
        self.made = 0

    def configure_model(self):
        self.net = net()
        self.made += 1


class SetUp(Configured):
    def configure_model(self):
        pass

    def setup(self, stage):
        self.net = net()
        self.made += 1


class ByHand(Tutorial):
    """Steps two optimizers by itself."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        for optimizer, part in ((first, self.net), (second, nn.Sequential(self.net, self.other))):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(part(batch[0]).mean())
            assert all(p.grad is not None for p in part[-1].parameters())
            optimizer.step()
            self.untoggle_optimizer(optimizer)
        for schedule in self.lr_schedulers():
            schedule.step()

    def configure_optimizers(self):
        made = [torch.optim.Adam(part.parameters()) for part in (self.net, self.other)]
        return made, [torch.optim.lr_scheduler.StepLR(each, 1) for each in made]


class Dictionaries(torch.utils.data.Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        return {"input_values": INPUTS[index], "labels": LABELS[index]}


DICTS = DataLoader(Dictionaries(), batch_size=8)
PART = [(Tutorial, None, "net"), (Joined, DICTS, "net"), (Configured, None, "net"), (SetUp, None, "net")]


@pytest.mark.parametrize(("make", "data", "part"), PART, ids=[make.__name__ for make, *_ in PART])
def test_a_module_without_forward_is_pruned_and_quantized_by_the_part_that_its_step_calls(make, data, part):
    prune, module = Prune(0.5, begin=0.0, end=0.5), make()
    trainer(prune, Quantize(begin=0.5)).fit(module, data or loader())
    target = module.get_submodule(part)
    assert quantizers_of(target).stage == Stage.ON
    assert prune.plan.sparsity == 0.5
    assert getattr(module, "made", 1) == 1, "layers are made once, as without callbacks"
    small = shrink(target, prune.plan)
    whole = shrink(module, prune.plan)  # by the same plan
    named = dict(whole.get_submodule(part).named_parameters())
    assert {n: p.shape for n, p in small.named_parameters()} == {n: p.shape for n, p in named.items()}
    assert all(torch.equal(p, named[n]) for n, p in small.named_parameters())
    mask_(module, prune.plan)


def test_the_second_stage_finds_the_part_again():
    module = Tutorial()
    fit = trainer(Prune(0.5, begin=0.0, end=0.5), Quantize(begin=0.5))
    fit.fit(module, loader())
    with torch.no_grad():
        expected = F.cross_entropy(module.eval().net(INPUTS), LABELS).item()
    assert fit.test(module, loader(), verbose=False)[0]["test"] == pytest.approx(expected, rel=1e-5)
    assert trainer(Quantize()).test(module, loader(), verbose=False)[0]["test"] == pytest.approx(expected, rel=1e-5)


class Autoencoder(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
        self.decoder = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 5))

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.decoder(self.encoder(batch[0])), batch[0])

    configure_optimizers = Base.configure_optimizers


@pytest.mark.parametrize(
    "make", [lambda **k: Prune(0.5, begin=0.0, end=0.5, **k), lambda **k: Quantize(begin=0.5, **k)]
)
def test_several_parts_without_a_forward_are_named_and_each_can_be_taken(make):
    with pytest.raises(UserError, match=r"training_step calls 'encoder', 'decoder', .* module='encoder'"):
        trainer(make()).fit(Autoencoder(), loader())
    module = Autoencoder()
    trainer(make(module="encoder"), make(module="decoder")).fit(module, loader())
    assert (record_of(module.encoder).quantization is not None) == (record_of(module.decoder).quantization is not None)


def test_what_is_never_called_is_told_with_what_is():
    class Two(Autoencoder):
        def training_step(self, batch, batch_idx):
            return self.encoder(batch[0]).mean()

    with pytest.raises(UserError, match=r"Two.training_step does not call 'decoder', it calls 'encoder'"):
        trainer(Prune(0.5, module="decoder")).fit(Two(), loader())


class Adversaries(Tutorial):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = net(), nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.discriminator(self.generator(batch[0])).mean())
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.Adam(part.parameters()) for part in (self.generator, self.discriminator)]


def test_a_part_of_adversaries():
    prune, module = Prune(0.5, begin=0.0, end=0.5, module="generator"), Adversaries()
    trainer(prune).fit(module, loader())
    assert shrink(module, prune.plan).generator[0].out_features == 4


class Translator(LightningTransformer):
    """Lightning's demo, without its download."""

    def prepare_data(self):
        pass


def test_lightnings_own_transformer():
    torch.manual_seed(0)
    tokens = torch.randint(0, 30, (6, 7))
    module = Translator(vocab_size=30)
    module.model = Transformer(vocab_size=30, ninp=8, nhid=16, nlayers=1)
    data = DataLoader(TensorDataset(tokens[:, :-1], tokens[:, 1:]), batch_size=3)
    name, target, (args, _) = watched(module, data)
    assert (name, target) == ("", module)
    assert torch.equal(args[0], tokens[:2, :-1])
    assert torch.equal(args[1], tokens[:2, 1:])
    prune = Prune(0.25, begin=0.0, end=0.5)
    trainer(prune, Quantize(begin=0.5), max_epochs=1).fit(module, data)
    assert prune.plan.sparsity > 0.2


class Look(L.Callback):
    """Looks in setup, as callbacks do."""

    def __init__(self, name=None):
        self.name, self.found = name, None

    def setup(self, trainer, pl_module, stage):
        self.found = find_part(trainer, pl_module, self.name)


def watched(module, data, name=None, **settings):
    look = Look(name)
    trainer(look, **settings).fit(module, data)
    return look.found


def test_optimizers_and_schedules_that_a_step_moves_by_hand_stay_where_they_are():
    class Weights(L.Callback):
        def on_train_start(self, trainer, pl_module):
            self.before = [p.clone() for p in pl_module.parameters()]
            assert all(not optimizer.state for optimizer in trainer.optimizers)

    first, second = ByHand(), ByHand()
    second.load_state_dict(first.state_dict())
    start = [p.clone() for p in first.parameters()]
    seen = Weights()
    trainer(Look("net"), seen).fit(first, loader())
    assert all(torch.equal(a, b) for a, b in zip(start, seen.before, strict=True))
    trainer().fit(second, loader())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


class Prepared(Tutorial):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch[0] - 1000.0, batch[1]

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] / 50.0, batch[1]

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return loader(1000 + 50 * INPUTS, LABELS)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] / 25.0, batch[1]


@pytest.mark.filterwarnings("ignore:You have overridden `on_")
@pytest.mark.parametrize(("data", "factor"), [(Data().train_dataloader(), 1.0), (Data(), 2.0)], ids=["module", "data"])
def test_inputs_are_those_after_the_transfer(data, factor):
    _, _, (args, _) = watched(Prepared(), data)
    torch.testing.assert_close(args[0], factor * INPUTS[:2], atol=1e-4, rtol=0)
    prune = Prune(0.5, scope="sensitivity", begin=0.0, end=0.5)
    trainer(prune).fit(Prepared(), data)
    assert [len(args[0]) for args, _ in prune.calibration] == [8, 8, 8]
    torch.testing.assert_close(torch.cat([a[0] for a, _ in prune.calibration]), factor * INPUTS, atol=1e-4, rtol=0)


class Several(Tutorial):
    def training_step(self, batch, batch_idx):
        (a, labels), (b,) = batch["a"], batch["b"]
        return F.cross_entropy(self.net(a + b), labels)


def test_batches_of_several_loaders_are_combined_as_in_the_fit():
    _, _, (args, _) = watched(Several(), {"a": loader(), "b": loader(INPUTS)})
    assert torch.equal(args[0], 2 * INPUTS[:2])


class Kept(Base):
    """Has a forward for later use; the step calls the layers itself."""

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])


class Other(Kept):
    """Has a forward that does something else."""

    def forward(self, x):
        return self.net(x / 2).argmax(1)


class Direct(Kept):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.forward(batch[0]), batch[1])


@pytest.mark.parametrize(("make", "name"), [(Kept, ""), (Other, "net"), (Direct, "")])
def test_a_forward_that_the_step_passes_by_is_taken_if_it_does_the_same(make, name):
    assert watched(make(), loader())[0] == name


def test_example_input_array_is_honoured_for_a_module_with_a_forward():
    module = Kept()
    module.example_input_array = torch.ones(1, 5)
    name, target, (args, _) = watched(module, loader())
    assert (name, target) == ("", module)
    assert args[0] is module.example_input_array or torch.equal(args[0], torch.ones(1, 5))
    module.example_input_array = torch.ones(1, 6)
    with pytest.raises(UserError, match=r"Kept.forward cannot be run on its example_input_array"):
        watched(module, loader())


class Detector(Base):
    """Takes a list of images of several sizes, and labels that are no tensor."""

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        return F.cross_entropy(torch.stack([self.net(x).mean(0) for x in inputs]), torch.tensor(targets["kinds"]))


def test_batches_of_other_kinds_go_in_whole():
    samples = [(torch.randn(n, 5), n % 3) for n in (2, 4, 3, 5)]
    data = DataLoader(samples, batch_size=2, collate_fn=lambda b: ([x for x, _ in b], {"kinds": [y for _, y in b]}))
    _, _, (args, _) = watched(Detector(), data)
    assert torch.equal(args[0], samples[0][0])


class Dropped(Base):
    def training_step(self, batch, batch_idx):
        x = batch[0]
        return self.net[2](F.pad(x, (0, 3)) if self.training else self.net[0](x)).mean()


def test_a_layer_that_training_leaves_out_is_seen_in_eval_mode():
    assert watched(Dropped(), loader(), "net.0")[0] == "net.0"


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_precisions(precision):
    data = loader(INPUTS.double() if precision == "64-true" else INPUTS, LABELS)
    call = watched(Autoencoder(), data, "decoder", precision=precision)[2]
    assert call[0][0].dtype == torch.float32, "as the weights are in setup"
    prune, module = Prune(0.5, scope="sensitivity", begin=0.0, end=0.5), Tutorial()
    trainer(prune, Quantize(begin=0.5), precision=precision).fit(module, data)
    assert prune.plan.sparsity == 0.5


def test_the_steps_own_fault_is_one_line():
    class Broken(Tutorial):
        def training_step(self, batch, batch_idx):
            return self.net(batch[0], 7)

    with pytest.raises(UserError, match=r"Broken.training_step could not be run on the first batch") as raised:
        trainer(Prune(0.5)).fit(Broken(), loader())
    assert "\n" not in str(raised.value)


def test_no_batch_is_told():
    class Empty(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(UserError, match="the data loader is empty"):
        trainer(Prune(0.5)).fit(Tutorial(), DataLoader(Empty(), batch_size=2))


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
def test_a_distillation_is_looked_at_without_its_teacher():
    class Counting(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x[:, :3]

    class Count(Look):
        def setup(self, trainer, pl_module, stage):
            super().setup(trainer, pl_module, stage)
            self.calls = teacher.calls

    teacher, look = Counting(), Count()
    module = DistillationModule(net(), teacher)
    trainer(look).fit(module, loader())
    name, target, (args, _) = look.found
    assert (name, target, look.calls) == ("student", module.student, 0)
    assert torch.equal(args[0], INPUTS[:2])


def test_calls_of_one_module_are_asked_for_by_the_module():
    class Ask(L.Callback):
        def setup(self, trainer, pl_module, stage):
            self.one = example_call(trainer, pl_module, pl_module.net, samples=3)
            self.many = example_calls(trainer, pl_module, pl_module.net, samples=12)

    ask = Ask()
    trainer(ask, max_steps=0).fit(Tutorial(), loader())
    assert torch.equal(ask.one[0][0], INPUTS[:3])
    assert [len(args[0]) for args, _ in ask.many] == [8, 4]
