"""What a network takes back at its next call is none of its answers."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from lighten import plan_pruning, shrink
from lighten.pruning.answers import answers_of
from lighten.utils.inputs import as_call


class Cache:
    """Keeps keys, as the caches of ``transformers`` do; nothing that PyTorch knows."""

    def __init__(self, keys):
        self.keys = keys


@dataclass
class Output:
    logits: torch.Tensor
    cache: object = None
    encoder_last_hidden_state: torch.Tensor | None = None
    hidden: torch.Tensor | None = None


class Net(nn.Module):
    """Puts out its keys for the next call, and its hidden state for anybody."""

    def __init__(self, kind=Output, keep=Cache):
        super().__init__()
        torch.manual_seed(0)
        self.keys, self.last, self.other, self.out = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.kind, self.keep = kind, keep

    def forward(self, x, cache=None, encoder_outputs=None):
        keys = self.keys(x) if cache is None else cache.keys + self.keys(x)
        last = self.last(keys.relu()) if encoder_outputs is None else encoder_outputs
        hidden = self.other(last.relu())
        return self.kind(
            logits=self.out(hidden.relu()), cache=self.keep(keys), encoder_last_hidden_state=last, hidden=hidden
        )


@pytest.mark.parametrize("kind", [Output, dict], ids=["dataclass", "dict"])
@pytest.mark.parametrize("keep", [Cache, lambda keys: keys, lambda keys: [keys]], ids=["object", "tensor", "list"])
def test_what_is_taken_back_may_lose_channels(kind, keep):
    model, x = Net(kind, keep), torch.randn(2, 4)
    plan = plan_pruning(model, x, 0.5)
    assert {row.name for row in plan.groups} == {"keys", "last"}
    assert plan.frozen == {"other": "is the network's output", "out": "is the network's output"}
    small = shrink(model, plan)
    assert (small.keys.out_features, small.last.out_features) == (4, 4)


def test_what_the_call_gave_is_an_answer():
    model = Net(dict, lambda keys: keys)
    call = as_call({"x": torch.randn(2, 4), "encoder_outputs": torch.randn(2, 8)})
    found = answers_of(model, model(*call[0], **call[1]), call)
    assert [name for name, value in found.items() if value is None] == ["cache"]
    call = as_call((torch.randn(2, 4), None, torch.randn(2, 8)))
    assert "encoder_last_hidden_state" in {
        n for n, v in answers_of(model, model(*call[0]), call).items() if v is not None
    }


def test_state_of_a_part_is_an_object():
    """A wrapper hands out what its part puts out: a cache that the part takes, but tensors by any name are answers."""

    class Wrapper(nn.Module):
        def __init__(self, part):
            super().__init__()
            self.part = part

        def forward(self, x):
            return self.part(x)

    for keep, gone in ((Cache, True), (lambda keys: keys, False)):
        model, call = Wrapper(Net(Output, keep)), as_call(torch.randn(2, 4))
        found = answers_of(model, model(*call[0]), call)
        assert (found.cache is None) == gone
        assert found.encoder_last_hidden_state is not None


def test_other_outputs_stay_as_they_are():
    for output in (torch.ones(2), [torch.ones(2)], {"y": torch.ones(2)}, (torch.ones(2), {"cache": torch.ones(1)})):
        found = answers_of(nn.Linear(2, 2), output, as_call(torch.ones(1, 2)))
        assert str(found) == str(output)
