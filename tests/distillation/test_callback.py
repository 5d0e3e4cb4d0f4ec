"""The callback in real fits, held against modules that compute the same loss by themselves."""

import copy
import io
import pickle

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from distillation_nets import bert, texts
from lightning.pytorch.callbacks import GradientAccumulationScheduler, WeightAveraging
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn

from lighten.data import build_data
from lighten.distillation.cache import TeacherCache
from lighten.distillation.callback import Distill
from lighten.distillation.features import hint
from lighten.distillation.loss import dkd, soft_labels
from lighten.distillation.match import Projection
from lighten.distillation.module import DistillationModule
from lighten.distillation.teacher import fingerprint
from lighten.errors import UserError
from lighten.models import build_model
from lighten.pruning.callback import Prune
from lighten.quantization.activation_quantizers import Stage, quantizers_of
from lighten.quantization.callback import Quantize

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "log_every_n_steps": 1,
}


class Own(L.LightningModule):
    """A user's module: a loss of its own, a teacher of nobody's."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def loss(self, logits, labels):
        return (logits - F.one_hot(labels, 4)).abs().sqrt().mean()

    def training_step(self, batch, index):
        return self.loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val", self.loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)]


class Reference(Own):
    """The same with the teacher's loss in its step, as a user would write it."""

    def __init__(self, net: nn.Module, teacher: nn.Module, weight: float = 0.5, temperature: float = 4.0) -> None:
        super().__init__(net)
        self.outside, self.weight, self.temperature = [teacher.eval()], weight, temperature

    def taught(self, logits, inputs):
        with torch.no_grad():
            theirs = self.outside[0](inputs)
        return self.weight * soft_labels(logits, theirs, self.temperature)

    def training_step(self, batch, index):
        logits = self.net(batch[0])
        return self.loss(logits, batch[1]) + self.taught(logits, batch[0])


FLOAT64 = {"precision": "64-true"}


def fit(module, data, *callbacks, path=None, evaluates=True, **settings):
    torch.manual_seed(0)
    trainer = L.Trainer(callbacks=list(callbacks), **{"max_epochs": 2, **QUIET, **settings})
    trainer.fit(module, data, data if evaluates else None, ckpt_path=path, weights_only=True)
    return trainer


def assert_same(module, other):
    state, expected = module.state_dict(), other.state_dict()
    assert list(state) == list(expected)
    for name, value in state.items():
        assert torch.equal(value, expected[name]), name


SETTINGS = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 2},
    "bf16": {"precision": "bf16-mixed"},
    "float64": {"precision": "64-true"},
    "clipped": {"gradient_clip_val": 0.1},
    "few batches": {"overfit_batches": 1},
    "one step": {"fast_dev_run": True},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_fit_is_that_of_a_module_which_adds_the_loss_itself(net, loader, settings):
    own, reference, teacher = Own(net(4)), Reference(net(4), net(8, seed=1)), net(8, seed=1)
    if settings.get("precision") == "64-true":  # the trainer casts batches; a teacher is asked in its own precision
        teacher, reference.outside = teacher.double(), [reference.outside[0].double()]
    trainer = fit(own, loader(), Distill(teacher, weight=0.5), **settings)
    fit(reference, loader(), **settings)
    assert_same(own, reference)
    assert trainer.global_step
    before = net(4).state_dict()
    assert not all(torch.equal(value, before[name].to(value)) for name, value in own.net.state_dict().items())


def test_a_scheduler_of_accumulation_and_weights_over_time(net, loader):
    class Over(Reference):
        def taught(self, logits, inputs):
            self.weight = 1.0 - self.trainer.global_step / 5  # three steps, then two of accumulation
            return super().taught(logits, inputs)

    own, reference = Own(net(4)), Over(net(4), net(8, seed=1).double())
    distill = Distill(net(8, seed=1).double(), weight={"from": 1.0, "to": 0.0})
    fit(own, loader(), distill, GradientAccumulationScheduler({0: 1, 1: 2}), **FLOAT64)
    fit(reference, loader(), GradientAccumulationScheduler({0: 1, 1: 2}), **FLOAT64)
    for name, value in own.state_dict().items():
        torch.testing.assert_close(value, reference.state_dict()[name], rtol=1e-9, atol=1e-9)


class ByHand(Own):
    automatic_optimization = False

    def __init__(self, net):
        super().__init__(net)
        self.automatic_optimization = False

    def total(self, logits, batch):
        return self.loss(logits, batch[1])

    def training_step(self, batch, index):
        optimizer = self.optimizers()
        logits = self.net(batch[0])
        optimizer.zero_grad()
        self.manual_backward(self.total(logits, batch))
        optimizer.step()


def test_optimization_by_hand_is_taught_by_what_goes_backward(net, loader):
    class Itself(ByHand):
        def total(self, logits, batch):
            return super().total(logits, batch) + Reference.taught(self, logits, batch[0])

    own, reference = ByHand(net(4)), Itself(net(4))
    reference.outside, reference.weight, reference.temperature = [net(8, seed=1).eval()], 0.5, 4.0
    trainer = fit(own, loader(), Distill(net(8, seed=1)))
    fit(reference, loader())
    assert_same(own, reference)
    assert 0 < trainer.callback_metrics["distil/share/soft_labels"] < 1


class Rivals(L.LightningModule):
    """Two optimizers by hand: the judge's loss sees what the generator makes, and must not teach it."""

    def __init__(self, teacher=None):
        super().__init__()
        self.automatic_optimization = False
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.generator, self.judge = nn.Linear(3, 4), nn.Linear(4, 1)
        self.outside = [teacher]

    def training_step(self, batch, index):
        first, second = self.optimizers()
        made = self.generator(batch)
        second.zero_grad()
        self.manual_backward(self.judge(made.detach()).square().mean())
        second.step()
        loss = -self.judge(made).mean()
        if self.outside[0] is not None:
            loss = loss + 0.5 * soft_labels(made, self.outside[0](batch).detach(), 4.0)
        first.zero_grad()
        self.manual_backward(loss)
        first.step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.generator.parameters(), 0.1), torch.optim.SGD(self.judge.parameters(), 0.1)


def test_of_several_losses_by_hand_the_one_that_comes_from_the_part_teaches():
    data = torch.utils.data.DataLoader(torch.randn(16, 3, generator=torch.Generator().manual_seed(0)), 4)
    own, reference = Rivals(), Rivals(nn.Linear(3, 4))
    torch.manual_seed(0)
    trainer = L.Trainer(callbacks=[Distill(reference.outside[0], module="generator")], max_epochs=2, **QUIET)
    trainer.fit(own, data)
    L.Trainer(max_epochs=2, **QUIET).fit(reference, data)
    assert_same(own, reference)


def test_a_backward_that_nobody_sees_is_told(net, loader):
    class Bare(ByHand):
        def training_step(self, batch, index):
            self.loss(self.net(batch[0]), batch[1]).backward()
            self.optimizers().step()

    with pytest.raises(UserError, match=r"no loss that Bare has given to self.manual_backward comes from what 'net'"):
        fit(Bare(net(4)), loader(), Distill(net(8, seed=1)))


class Frozen(Own):
    def training_step(self, batch, index):
        with torch.no_grad():
            self.net(batch[0])
        return sum(weight.square().sum() for weight in self.net.parameters())


def test_a_part_whose_answers_have_no_gradient_is_told(net, loader):
    with pytest.warns(UserWarning, match=r"Distill has taught nothing so far: no answer of 'net' has a gradient"):
        fit(Frozen(net(4)), loader(), Distill(net(8, seed=1)))


class InAMapping(Own):
    def training_step(self, batch, index):
        return None if index == 1 else {"loss": super().training_step(batch, index), "seen": index}


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_step_may_return_a_mapping_or_nothing(net, loader):
    class Itself(Reference):
        def training_step(self, batch, index):
            return None if index == 1 else {"loss": super().training_step(batch, index)}

    class Seen(L.Callback):
        keys = ()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if outputs:
                Seen.keys = tuple(outputs)

    own, reference = InAMapping(net(4)), Itself(net(4), net(8, seed=1))
    fit(own, loader(), Distill(net(8, seed=1)), Seen())
    fit(reference, loader())
    assert_same(own, reference)
    assert Seen.keys == ("loss", "seen")


class Forward(Own):
    """Its step goes through its own forward."""

    def forward(self, image):
        return {"kind": self.net(image), "size": image.shape[-1], "map": self.net[0](image)}

    def training_step(self, batch, index):
        return self.loss(self(batch[0])["kind"], batch[1])


def test_the_whole_module_is_a_part_too_with_several_outputs(net, loader):
    own, reference = Forward(net(4)), Reference(net(4), net(8, seed=1))
    distill = Distill(net(8, seed=1), outputs="kind", teacher_outputs=0)
    fit(own, loader(), distill)
    fit(reference, loader())
    assert_same(own, reference)


def test_a_forward_that_the_step_does_not_call_is_not_the_part(net, loader):
    class Both(Own):
        def forward(self, image):
            return self.net(image)

    own, reference = Both(net(4)), Reference(net(4), net(8, seed=1))
    own.example_input_array = torch.zeros(2, 3, 6, 6)
    fit(own, loader(), Distill(net(8, seed=1)))
    fit(reference, loader())
    assert_same(own, reference)


def test_each_answer_with_a_gradient_is_taught_and_their_mean_counts(net, loader):
    class Twice(Own):
        def training_step(self, batch, index):
            with torch.no_grad():
                self.net(batch[0])
            return self.loss(self.net(batch[0]), batch[1]) + self.loss(self.net(-batch[0]), batch[1])

    class Itself(Reference):
        def training_step(self, batch, index):
            self.net(batch[0]).detach()
            one, other = self.net(batch[0]), self.net(-batch[0])
            loss = self.loss(one, batch[1]) + self.loss(other, batch[1])
            return loss + (self.taught(one, batch[0]) + self.taught(other, -batch[0])) / 2

    own, reference = Twice(net(4)), Itself(net(4), net(8, seed=1).double())
    fit(own, loader(), Distill(net(8, seed=1).double()), **FLOAT64)
    fit(reference, loader(), **FLOAT64)
    for name, value in own.state_dict().items():
        torch.testing.assert_close(value, reference.state_dict()[name], rtol=1e-9, atol=1e-9)


def test_labels_come_from_the_batch_where_a_loss_asks_for_them(net, loader):
    class Itself(Reference):
        def training_step(self, batch, index):
            logits = self.net(batch[0])
            with torch.no_grad():
                theirs = self.outside[0](batch[0])
            taught = 0.7 * dkd(logits, theirs, batch[1], 2.0) + 0.3 * F.cross_entropy(logits, batch[1])
            return self.loss(logits, batch[1]) + 0.5 * taught

    own, reference, teacher = Own(net(4)), Itself(net(4), net(8, seed=1).double()), net(8, seed=1).double()
    fit(own, loader(), Distill(teacher, losses={"dkd": 0.7, "cross_entropy": 0.3}, temperature=2.0), **FLOAT64)
    fit(reference, loader(), **FLOAT64)
    for name, value in own.state_dict().items():
        torch.testing.assert_close(value, reference.state_dict()[name], rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`")
def test_a_step_that_draws_its_batches_itself_is_taught(net, loader):
    class Drawing(Own):
        def training_step(self, dataloader_iter):
            batch, *_ = next(dataloader_iter)
            return self.loss(self.net(batch[0]), batch[1])

    own, reference = Drawing(net(4)), Reference(net(4), net(8, seed=1))
    fit(own, loader(), Distill(net(8, seed=1)))
    fit(reference, loader())
    assert_same(own, reference)


def test_two_parts_have_a_teacher_each(net, loader):
    class Two(Own):
        def __init__(self, net, other):
            super().__init__(net)
            self.other = other

        def training_step(self, batch, index):
            one, two = self.net(batch[0]), self.other(batch[0])
            return self.loss(one + two, batch[1]) + self.taught(one, two, batch[0])

        def taught(self, one, two, inputs):
            return 0.0

    class Itself(Two):
        def taught(self, one, two, inputs):
            first, second = (teacher(inputs).detach() for teacher in teachers)
            return 0.5 * soft_labels(one, first, 4.0) + 0.25 * soft_labels(two, second, 4.0)

    teachers = [net(8, seed=seed).double().eval() for seed in (1, 2)]
    own, reference = (kind(net(4), net(4, seed=5)) for kind in (Two, Itself))
    first = Distill(teachers[0], module="net")
    second = Distill(teachers[1], module="other", weight=0.25)
    fit(own, loader(), first, second, **FLOAT64)
    fit(reference, loader(), **FLOAT64)
    for name, value in own.state_dict().items():
        torch.testing.assert_close(value, reference.state_dict()[name], rtol=1e-9, atol=1e-9)
    assert not {"training_step", "manual_backward"} & set(vars(own))


class Text(L.LightningModule):
    """Layers made late; labels go into the network's own call, as ``transformers`` has it."""

    def configure_model(self):
        if not hasattr(self, "model"):
            with torch.random.fork_rng():
                torch.manual_seed(1)
                self.model = bert(2)

    def training_step(self, batch, index):
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def test_texts_and_their_labels_as_keywords_of_a_part_that_is_made_late():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        teacher = bert(4, width=32).eval()

    class Itself(Text):
        def training_step(self, batch, index):
            out = self.model(**batch)
            with torch.no_grad():
                theirs = teacher(**batch).logits
            return out.loss + 2.0 * soft_labels(out.logits, theirs, 4.0)

    own, reference = Text(), Itself()
    fit(own, texts(), Distill(teacher, weight=2.0), evaluates=False)
    fit(reference, texts(), evaluates=False)
    assert_same(own, reference)


def test_what_projections_have_learned_outlives_a_second_fit(net, loader):
    module, distill, starts = Own(net(4)), Distill(net(8, seed=1), losses={"hint": 1.0}, layers={"0": "0"}), []

    class Start(L.Callback):
        def on_train_start(self, trainer, pl_module):
            starts.append(distill._projections["0->0"].weight.detach().clone())

    fit(module, loader(), distill, Start())
    learned = distill._projections["0->0"].weight.detach().clone()
    fit(module, loader(), distill, Start())
    assert not torch.equal(starts[0], learned)
    assert torch.equal(starts[1], learned)


class Pictures(L.LightningModule):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = build_model("mlp", num_classes=10, input_shape=(1, 28, 28), hidden=[8])

    def training_step(self, batch, index):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def test_a_cache_is_opened_for_the_data_module_and_asks_once_a_sample(tmp_path):
    def run(cache):
        asked, module = [], Pictures()
        teacher = build_model("mlp", num_classes=10, input_shape=(1, 28, 28), hidden=[8])
        teacher.load_state_dict({name: torch.full_like(t, 0.01) for name, t in teacher.state_dict().items()})
        teacher.register_forward_hook(lambda *given: asked.append(1))
        for _ in range(2):
            data = build_data("fashion_mnist", batch_size=32, augment=False)
            data.keyed = cache is not None
            short = {"limit_train_batches": 4, "limit_val_batches": 0, "max_epochs": 1}
            torch.manual_seed(0)
            L.Trainer(callbacks=[Distill(teacher, cache=cache)], **QUIET, **short).fit(module, data)
        return module, len(asked)

    kept, asked = run(TeacherCache(tmp_path / "cache"))
    plain, often = run(None)
    assert_same(kept, plain)
    assert (asked, often) == (2 + 4, 2 + 8)  # once in each setup


def test_losses_are_logged_as_the_module_logs_them(net, loader):
    trainer = fit(Own(net(4)), loader(), Distill(net(8, seed=1), weight=2.0))
    metrics = trainer.callback_metrics
    assert {name for name in metrics if name.startswith("distil/")} == {
        "distil/soft_labels",
        "distil/share/soft_labels",
    }
    assert 0 < metrics["distil/share/soft_labels"] < 1


def test_nothing_of_the_teacher_or_of_its_projections_is_in_module_or_weights(net, loader, tmp_path):
    teacher = net(32, seed=1)
    before, module = fingerprint(teacher), Own(net(4))
    distill = Distill(teacher, losses={"soft_labels": 1.0, "hint": 0.5}, layers={"0": "0"})
    trainer = fit(module, loader(), distill)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    checkpoint = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert list(checkpoint["state_dict"]) == [f"net.{name}" for name in net(4).state_dict()]
    assert checkpoint["callbacks"][distill.state_key]["teacher"] == before == fingerprint(teacher)
    assert not {"training_step", "manual_backward", "configure_optimizers"} & set(vars(module))
    assert not module.net._forward_hooks
    assert not module.net[0]._forward_hooks
    assert not teacher[0]._forward_hooks


class Hinted(Reference):
    """A hint with a projection that the user's optimizer has, written by hand."""

    def __init__(self, net, teacher):
        super().__init__(net, teacher)
        self.map = Projection(4, 8, bias=False)

    def setup(self, stage):
        self.map.reset_parameters()  # drawn where the callback draws its own

    def training_step(self, batch, index):
        ours = self.net[0](batch[0])
        logits = self.net[1:](ours)
        with torch.no_grad():
            theirs = self.outside[0][0](batch[0])
        return self.loss(logits, batch[1]) + 0.5 * hint(self.map(ours), theirs)


@pytest.mark.parametrize("groups", [False, True])
def test_projections_are_trained_by_the_users_own_optimizer(net, loader, groups):
    class Grouped:
        def configure_optimizers(self):
            if not groups:
                return super().configure_optimizers()
            decayed = [p for name, p in self.named_parameters() if name.endswith("weight")]
            others = [p for name, p in self.named_parameters() if not name.endswith("weight")]
            return torch.optim.SGD([{"params": decayed, "weight_decay": 0.1}, {"params": others}], lr=0.05)

    class Ours(Grouped, Own):
        pass

    class Theirs(Grouped, Hinted):
        pass

    own, reference = Ours(net(4)), Theirs(net(4), net(8, seed=1))
    distill = Distill(net(8, seed=1), losses={"hint": 1.0}, layers={"0": "0"})

    fit(own, loader(), distill)
    fit(reference, loader())
    for name, value in own.state_dict().items():
        assert torch.equal(value, reference.state_dict()[name]), name
    assert torch.equal(distill._projections["0->0"].weight, reference.map.weight)


def test_projections_follow_the_precision_of_the_fit(net, loader):
    teacher = net(8, seed=1)
    distill = Distill(teacher, losses={"hint": 1.0}, layers={"0": "0"})
    trainer = fit(Own(net(4)), loader(), distill, precision="bf16-true")
    assert distill._projections["0->0"].weight.dtype == torch.bfloat16
    assert teacher[0].weight.dtype == torch.float32
    assert torch.isfinite(trainer.callback_metrics["distil/hint"])


def test_an_optimizer_without_the_projections_is_told(net, loader):
    class Head(Own):
        def configure_optimizers(self):
            return torch.optim.SGD(self.net[6].parameters(), lr=0.1)

    with pytest.raises(UserError, match=r"configure_optimizers leaves out '0->0.weight', .* parameters of 'net'"):
        fit(Head(net(4)), loader(), Distill(net(8, seed=1), losses={"hint": 1.0}, layers={"0": "0"}))


class Save(L.Callback):
    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def test_a_resumed_fit_ends_with_the_same_bits_and_another_teacher_is_refused(net, loader, tmp_path):
    def distill(seed=1, **settings):
        losses = {"soft_labels": 1.0, "hint": {"from": 1.0, "to": 0.0}}
        return Distill(net(8, seed=seed), **{"losses": losses, "layers": {"0": "0"}, **settings})

    def module():
        built = Own(net(4))
        built.net[3].p = 0.0  # nothing is drawn after the first epoch
        return built

    straight, first, resumed, path = module(), distill(), module(), tmp_path / "half.ckpt"
    fit(straight, loader(), first, Save(path))
    again = distill()
    fit(resumed, loader(), again, path=path)
    assert_same(resumed, straight)
    for ours, theirs in zip(again._projections.parameters(), first._projections.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(UserError, match="the checkpoint's teacher is"):
        fit(module(), loader(), distill(seed=2), path=path)
    with pytest.raises(UserError, match=r"the checkpoint has projections 0->0.weight, this fit of none"):
        fit(module(), loader(), distill(losses={"soft_labels": 1.0}), path=path)
    L.Trainer(callbacks=[distill(seed=2)], **QUIET).validate(module(), loader(), ckpt_path=path, verbose=False)


def test_copies_and_pickles_made_during_the_fit_are_of_the_module_alone(net, loader):
    class Copy(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.copied = copy.deepcopy(pl_module.net)
            self.whole = copy.deepcopy(pl_module).eval()
            self.pickled = pickle.loads(pickle.dumps(pl_module.net))
            torch.save(pl_module, io.BytesIO())
            own = self.whole.loss(self.whole.net(batch[0]), batch[1])
            assert torch.equal(self.whole.training_step(batch, 0), own)
            assert self.whole.training_step.__self__ is self.whole

    watch = Copy()
    fit(
        Own(net(4)),
        loader(),
        Distill(net(8, seed=1), losses={"soft_labels": 1.0, "hint": 1.0}, layers={"0": "0"}),
        watch,
    )
    for each in (watch.copied, watch.pickled):
        assert_same(each, watch.whole.net)
        each(torch.zeros(2, 3, 6, 6))


def test_averaged_weights_are_of_the_taught_ones(net, loader):
    own, reference = Own(net(4)), Reference(net(4), net(8, seed=1))
    fit(own, loader(), Distill(net(8, seed=1)), WeightAveraging())
    fit(reference, loader(), WeightAveraging())
    assert_same(own, reference)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch hides it, unless warnings are errors
@pytest.mark.parametrize("what", ["part", "step"])
def test_compiled_parts_and_steps_are_taught(net, loader, what):
    own, reference, compiled = Own(net(4)), Reference(net(4), net(8, seed=1)), []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    given = own
    if what == "part":
        own.net.compile(backend=backend)
    else:
        given = torch.compile(own, backend=backend)
    fit(given, loader(), Distill(net(8, seed=1)))
    fit(reference, loader())
    assert_same(own, reference)
    assert compiled


@pytest.mark.parametrize("order", [0, 1, 2])
def test_pruned_and_quantized_in_the_same_fit_in_any_order(net, loader, order):
    module, prune = Own(net(8)), Prune(0.5, begin=0.1, end=0.5, module="net")
    callbacks = [Distill(net(8, seed=1), weight=1.0, module="net"), prune, Quantize(begin=0.6, module="net")]
    trainer = fit(module, loader(), *callbacks[order:], *callbacks[:order], max_epochs=4, gradient_clip_val=1.0)
    assert prune.plan.sparsity == 0.5
    assert (module.net[0].weight.flatten(1).abs().amax(1) == 0).sum() == 4
    assert quantizers_of(module.net).stage == Stage.ON
    assert "distil/soft_labels" in trainer.callback_metrics
    assert not module.net._forward_hooks


def test_a_student_learns_what_its_teacher_knows(net, loader):
    """Its own loss says nothing: the student comes to the teacher's answers."""

    class Silent(Own):
        def loss(self, logits, labels):
            return 0.0 * logits.sum()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.02)

    teacher, module = net(8, seed=1), Silent(net(8, seed=2))
    for model in (teacher, module.net):
        model[3].p = 0.0
    inputs = next(iter(loader(batch_size=24)))[0]
    wanted = teacher.eval()(inputs).softmax(1)
    before = F.l1_loss(module.net.eval()(inputs).softmax(1), wanted)
    fit(module.train(), loader(), Distill(teacher), max_epochs=25, limit_val_batches=0)
    assert F.l1_loss(module.net.eval()(inputs).softmax(1), wanted) < 0.25 * before


def test_what_fails_leaves_the_module_as_it_was(net, loader):
    class Failing(Own):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            raise RuntimeError("enough")

    module = Failing(net(4))
    with pytest.raises(RuntimeError, match="enough"):
        fit(module, loader(), Distill(net(8, seed=1), losses={"hint": 1.0}, layers={"0": "0"}))
    assert not {"training_step", "manual_backward", "configure_optimizers"} & set(vars(module))
    assert not module.net._forward_hooks
    assert not module.net[0]._forward_hooks


class Somewhere(Own):
    def training_step(self, batch, index):
        if index == 1:
            return self.loss(self.net[6].weight.sum() * torch.ones(8, 4), batch[1])
        return super().training_step(batch, index)


BAD_FITS = {
    "another shape": (lambda n: (Own(n(4)), [Distill(n(8, 7))]), "the teacher gives 7 classes, the student 4"),
    "another rank": (
        lambda n: (Own(n(4)), [Distill(nn.Sequential(*n(4, seed=1)[:3]))]), "the teacher's logits have shape"
    ),
    "other arguments": (
        lambda n: (Own(n(4)), [Distill(nn.Linear(5, 4))]), "teacher Linear cannot be asked what 'net' is called with"
    ),
    "no such part": (lambda n: (Own(n(4)), [Distill(n(8), module="nets")]), "module='nets': Own has no such submodule"),
    "not called": (lambda n: (Somewhere(n(4)), [Distill(n(8))]), "Somewhere.training_step did not call 'net' on this"),
    "twice": (
        lambda n: (Own(n(4)), [Distill(n(8)), Distill(n(8), module="net")]), "Distill is given twice for 'net'"
    ),
    "taught already": (lambda n: (DistillationModule(n(4)), [Distill(n(8))]), "DistillationModule teaches already"),
    "no layer": (
        lambda n: (Own(n(4)), [Distill(n(8), losses={"hint": 1.0}, layers={"9": "0"})]), "no layer of the student"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("build", "told"), BAD_FITS.values(), ids=BAD_FITS)
def test_what_does_not_fit_is_told_in_one_line(net, loader, build, told):
    module, callbacks = build(net)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(UserError, match=told) as caught:
        fit(module, loader(), *callbacks)
    assert "\n" not in str(caught.value)
    assert not {"training_step", "manual_backward"} & set(vars(module))
    if told.startswith("the teacher"):
        assert all(torch.equal(value, before[n]) for n, value in module.state_dict().items() if "running" not in n
                   and "tracked" not in n)  # fmt: skip


def test_a_teacher_of_the_students_own_weights_is_told(net, loader):
    module = Own(net(4))
    with pytest.raises(UserError, match="share 6 parameters"):
        fit(module, loader(), Distill(module.net))


def test_flat_pieces_of_weights_are_told(net):
    distill, trainer = Distill(net(8)), L.Trainer(**QUIET)
    trainer.strategy.__class__ = FSDPStrategy
    with pytest.raises(UserError, match="FSDPStrategy runs all of the module behind one wrapper"):
        distill.setup(trainer, Own(net(4)), "fit")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"weight": -0.5}, "weight=-0.5: expected a number at least 0"),
        ({"weight": 0.0}, "weight=0: expected a number above 0"),
        ({"weight": {"from": 1.0}}, "to is missing"),
        ({"weight": float("nan")}, "weight=nan, expected a finite number"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"losses": {"soft": 1.0}}, "did you mean 'soft_labels'"),
        ({"losses": {"dkd": 1.0}, "task": "regression"}, "losses has 'dkd', which task='regression' has no use for"),
        ({"layers": "even"}, "layers='even'"),
        ({"batch": ("input", "labels")}, "batch has the role 'labels'"),
        ({"losses": {"hint": 1.0}, "batch": ("input", "weight")}, "which 'hint' does not take"),
    ],
)
def test_settings_out_of_range_are_refused_at_once(net, settings, told):
    with pytest.raises(UserError, match=told) as caught:
        Distill(net(8), **settings)
    assert "\n" not in str(caught.value)


def test_a_teacher_that_is_missing_or_has_no_weights_is_refused_at_once(net):
    with torch.device("meta"):
        empty = nn.Linear(3, 4)
    for teacher, told in ((None, "teacher=None, expected a model"), ([], r"teacher=\[\]"), (empty, "no weights")):
        with pytest.raises(UserError, match=told):
            Distill(teacher)
