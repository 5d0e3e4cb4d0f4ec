"""A module's own step with a teacher's losses in it, without a Trainer."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lighten.distillation.cache import TeacherCache
from lighten.distillation.features import hint
from lighten.distillation.loss import soft_labels
from lighten.distillation.step import Moment, TaughtStep, named
from lighten.distillation.teacher import Teacher
from lighten.distillation.teaching import Teaching
from lighten.distillation.terms import CrossRank, WeightedLosses
from lighten.errors import UserError
from lighten.utils.batch import BatchFormat


class Own(nn.Module):
    """What of a LightningModule counts here."""

    def __init__(self, body=None) -> None:
        super().__init__()
        self.net, self.automatic_optimization = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)), True
        self.body = body

    def training_step(self, batch, index=0):
        return self.body(self, batch) if self.body else self.net(batch[0]).square().mean()

    def manual_backward(self, loss, **kwargs):
        loss.backward(**kwargs)


@pytest.fixture
def taught():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))

    def build(module, losses=None, weight=0.5, *, cache=None, batch=None, layers="uniform", progress=0.0):
        terms = WeightedLosses(losses or {"soft_labels": 1.0}, 4.0)
        teaching = Teaching(
            terms, Teacher(teacher), student=module.net, projections=nn.ModuleDict(), cache=cache, layers=layers
        )
        step = TaughtStep(
            teaching, module, "net", weight=weight, batch_format=BatchFormat(batch, keyed=cache is not None),
            outputs=None, moment=lambda: Moment(progress, CrossRank(), first=True, look=True), after=lambda: None,
        )  # fmt: skip
        step.begin()
        return step

    return SimpleNamespace(build=build, teacher=teacher, batch=(torch.randn(6, 3), torch.arange(6) % 4))


def test_the_losses_of_the_answers_are_added_with_their_weight(taught) -> None:
    module, (x, _) = Own(), taught.batch
    step = taught.build(module, {"soft_labels": 0.8, "hint": 0.2}, layers={"0": "0"})
    loss = module.training_step(taught.batch)
    ours, theirs = module.net[0](x), taught.teacher[0](x)
    expected = 0.8 * soft_labels(module.net(x), taught.teacher(x), 4.0) + 0.2 * hint(ours, theirs)
    own = module.net(x).square().mean()
    torch.testing.assert_close(loss, own + 0.5 * expected)
    logged = step.logged()
    assert set(logged) == {"distil/soft_labels", "distil/share/soft_labels", "distil/hint", "distil/share/hint"}
    share = logged["distil/share/soft_labels"] + logged["distil/share/hint"]
    torch.testing.assert_close(share, (1 - own / loss).detach())
    assert not any(value.requires_grad for value in logged.values())


def test_each_of_several_calls_has_its_own_layers(taught) -> None:
    def body(module, batch):
        return module.net(batch[0]).mean() + module.net(-batch[0]).mean()

    module, (x, _) = Own(body), taught.batch
    taught.build(module, {"hint": 1.0}, layers={"0": "0"})
    loss = module.training_step(taught.batch)
    each = [hint(module.net[0](given), taught.teacher[0](given)) for given in (x, -x)]
    torch.testing.assert_close(loss, body(module, taught.batch) + 0.5 * sum(each) / 2)


def test_an_answer_without_a_gradient_is_not_taught(taught) -> None:
    def body(module, batch):
        with torch.no_grad():
            module.net(batch[0])
        return torch.zeros((), requires_grad=True)

    module = Own(body)
    step = taught.build(module)
    assert module.training_step(taught.batch) == 0
    assert step.logged() == {}


def test_nobody_is_asked_while_the_weight_is_zero(taught) -> None:
    module, asked = Own(), []
    taught.build(module, weight={"from": 0.0, "to": 1.0})
    taught.teacher.register_forward_hook(lambda *given: asked.append(1))
    assert torch.equal(module.training_step(taught.batch), module.net(taught.batch[0]).square().mean())
    assert not asked


def test_a_loss_of_each_backward_has_the_answers_that_it_comes_from(taught) -> None:
    def body(module, batch):
        one, other = module.net(batch[0]), module.net(-batch[0])
        module.manual_backward(one.mean(), retain_graph=True)
        gradients.append(module.net[2].bias.grad.clone())
        module.manual_backward(other.mean() + one.mean())
        gradients.append(module.net[2].bias.grad.clone())

    gradients: list[torch.Tensor] = []
    module, (x, _) = Own(body), taught.batch
    module.automatic_optimization = False
    step = taught.build(module)
    module.training_step(taught.batch)
    step.end()
    module.zero_grad()
    for given, also in ((x, False), (-x, True)):
        own = module.net(given).mean() + (module.net(x).mean() if also else 0.0)
        (own + 0.5 * soft_labels(module.net(given), taught.teacher(given), 4.0)).backward()
        torch.testing.assert_close(gradients.pop(0), module.net[2].bias.grad)
    assert step.told


def test_inputs_that_the_step_takes_out_of_its_batch_are_read_before(taught) -> None:
    def body(module, batch):
        batch.pop("labels")
        return module.net(batch.pop("x")).mean()

    module = Own(body)
    taught.build(module, {"dkd": 1.0})
    x, labels = taught.batch
    assert torch.isfinite(module.training_step({"x": x, "labels": labels}))


def test_weights_of_samples_weigh_the_teachers_losses(taught) -> None:
    module, (x, labels) = Own(), taught.batch
    taught.build(module, batch=("input", "label", "weight"))
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0, 3.0])
    loss = module.training_step((x, labels, weights))
    soft = soft_labels(module.net(x), taught.teacher(x), 4.0, weights=weights)
    torch.testing.assert_close(loss, module.net(x).square().mean() + 0.5 * soft)


def test_a_cache_answers_by_keys_and_once_a_step(taught, tmp_path) -> None:
    cache = TeacherCache(tmp_path)
    cache.open({"teacher": "x"}, samples=6, views=1, outputs=4)
    module, asked, (x, labels) = Own(), [], taught.batch
    taught.build(module, cache=cache)
    taught.teacher.register_forward_hook(lambda *given: asked.append(1))
    first, second = (module.training_step((x, labels, torch.arange(6))) for _ in range(2))
    assert torch.equal(first, second)
    assert len(asked) == 1
    module.body = lambda module, batch: (module.net(batch[0]) + module.net(batch[0])).mean()
    with pytest.raises(UserError, match="a step calls 'net' several times; leave the cache out"):
        module.training_step((x, labels, torch.arange(6)))


@pytest.mark.parametrize(
    ("body", "losses", "told"),
    [
        (lambda m, b: m.net[0](b[0]).mean(), None, "Own.training_step did not call 'net' on this batch"),
        (lambda m, b: m.net(b).mean(), {"dkd": 1.0}, "a batch without labels"),
        (lambda m, b: m.net(b[0][:3]).mean(), {"dkd": 1.0}, r"labels have shape \(6,\), the student's logits \(3, 4\)"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(taught, body, losses, told) -> None:
    module = Own(body)
    taught.build(module, losses)
    with pytest.raises(UserError, match=told) as caught:
        module.training_step(taught.batch[0] if told.endswith("labels") else taught.batch)
    assert "\n" not in str(caught.value)


def test_nothing_is_left_after_its_end(taught) -> None:
    module = Own()
    step = taught.build(module, {"hint": 1.0}, layers={"0": "0"})
    module.training_step(taught.batch)
    step.end()
    step.teaching.close()
    assert not {"training_step", "manual_backward"} & set(vars(module))
    assert not any(m._forward_hooks for m in (*module.modules(), *taught.teacher.modules()))
    assert (named("a.b"), named("")) == ("'a.b'", "the module")
