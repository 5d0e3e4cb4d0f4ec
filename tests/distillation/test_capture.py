import copy
import pickle

import torch
from torch import nn

from lighten.distillation.capture import Capture, Replaced, behind, lent


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 2)

    def step(self, x, *, times=1):
        return self.net(x) * times


def test_calls_are_kept_while_it_is_on_and_what_a_loss_comes_from_is_taken() -> None:
    net, capture, x = nn.Linear(2, 2), Capture(), torch.ones(1, 2)
    handle = net.register_forward_hook(capture, with_kwargs=True)
    net(x)
    capture.on = True
    first, second = net(x), net(input=x)
    chained = net(first)
    capture.on = False
    net(x)
    assert [answer.call for answer in capture.answers] == [((x,), {}), ((), {"input": x}), ((first,), {})]
    assert [answer.output is out for answer, out in zip(capture.take(chained.sum()), (first, chained), strict=True)]
    assert [answer.output is second for answer in capture.answers] == [True]
    assert capture.take((first.detach() * 2).requires_grad_().sum()) == []
    handle.remove()


def test_any_of_several_outputs_ties_an_answer_to_a_loss() -> None:
    class Several(nn.Module):
        def forward(self, x):
            return {"logits": x * 2, "features": [x * 3]}

    net, capture, x = Several(), Capture(), torch.ones(2, requires_grad=True)
    net.register_forward_hook(capture, with_kwargs=True)
    capture.on = True
    out = net(x)
    assert len(behind(out["features"][0].sum(), capture.answers)) == 1
    assert behind((x * 5).sum(), capture.answers) == []


def test_features_are_those_of_each_call() -> None:
    seen, net = iter([{"a": torch.zeros(1)}, {"a": torch.ones(1)}]), nn.Identity()
    capture = Capture(lambda: next(seen))
    net.register_forward_hook(capture, with_kwargs=True)
    capture.on = True
    net(1), net(2)
    assert [float(answer.features["a"]) for answer in capture.take()] == [0.0, 1.0]


def doubled(step, *args, **kwargs):
    return 2 * step(*args, **kwargs)


def test_methods_are_replaced_and_given_back_in_any_order() -> None:
    module, x = Twice(), torch.ones(1, 2)
    own = module.step(x)
    first, second = Replaced(module, "step", doubled), Replaced(module, "step", doubled)
    assert torch.equal(module.step(x, times=3), 12 * own)
    first.undo()
    assert torch.equal(module.step(x), 2 * own)
    second.undo()
    second.undo()
    assert "step" not in vars(module)
    module.step = doubled_of = lambda x: 5.0  # an instance's own
    third = Replaced(module, "step", doubled)
    assert module.step(x) == 10.0
    third.undo()
    assert module.step is doubled_of


def test_copies_and_pickles_have_their_own_method_and_a_hook_that_keeps_nothing() -> None:
    module, x = Twice(), torch.ones(1, 2)
    capture = Capture()
    module.net.register_forward_hook(capture, with_kwargs=True)
    capture.on = True
    Replaced(module, "step", doubled)
    module.net(x)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(2 * other.step(x), module.step(x))
        assert other.step.__self__ is other
        (copied,) = other.net._forward_hooks.values()
        kept = list(capture.answers)
        other.net(x)
        assert copied.answers == []
        assert len(capture.answers) == len(kept)


def test_a_part_is_lent_for_a_while_and_taken_back_after_a_failure() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    try:
        with lent(net, "more", nn.Linear(2, 3)):
            assert len(list(net.parameters())) == 4
            raise RuntimeError
    except RuntimeError:
        assert [name for name, _ in net.named_children()] == ["0"]
