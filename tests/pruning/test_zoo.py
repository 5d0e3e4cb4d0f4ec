"""Two dozen architectures: every cut is right, or the layer is left alone by name."""

import copy
import re
from functools import lru_cache

import pytest
import torch
import torch_pruning
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode
from zoo import ZOO

from lighten.pruning import mask_, plan_pruning, shrink
from lighten.utils.inputs import as_call

pytestmark = pytest.mark.filterwarnings("ignore:.*from_pretrained cannot read it")

LEFT_ALONE = {
    "recurrent": {"lstm": r"goes through lstm \(zoo.py:\d+ in lstm\)"},
    "mixer": {"tokens": r"mixes places, not channels \(zoo.py:\d+ in t\d\)"},
}
"""What is left alone beside the layers that make the output, and why."""
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in ("efficientnet", "regnet") else name for name in ZOO]


def randomise(model):
    """Let nothing hide behind a one, a zero or a branch that starts at zero."""
    generator = torch.Generator().manual_seed(3)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and (tensor.ndim == 1 or not tensor.any()):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.25)
    return model.eval()


@lru_cache
def halved(name):
    torch.manual_seed(0)
    build, example = ZOO[name]
    model, inputs = randomise(build()), example()
    plan = plan_pruning(model, inputs, 0.5)
    return model, inputs, plan, shrink(model, plan)


def other(inputs):
    """Inputs that nobody planned with: another batch size, other values."""
    generator = torch.Generator().manual_seed(7)

    def draw(x):
        x = torch.cat([x, x[:1]])
        return torch.randn(x.shape, generator=generator) if x.is_floating_point() else x.flip(-1)

    return tree_map(draw, inputs)


def outputs(model, inputs, dtype):
    args, kwargs = as_call(tree_map(lambda x: x.to(dtype) if x.is_floating_point() else x, inputs))
    found = copy.deepcopy(model).to(dtype).eval()(*args, **kwargs)
    return [value for value in tree_leaves(found) if isinstance(value, torch.Tensor)]


def gap(one, two):
    return max(float((a - b).abs().max() / max(1.0, float(a.abs().max()))) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_masked_equals_shrunk(name):
    model, inputs, plan, small = halved(name)
    masked = copy.deepcopy(model)
    mask_(masked, plan)
    with torch.no_grad():
        for dtype, most in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
            whole, cut = (outputs(m, other(inputs), dtype) for m in (masked, small))
            assert gap(whole, cut) <= most, dtype
        assert gap(outputs(model, other(inputs), torch.float64), whole) > 1e-3  # or the masks did nothing


@pytest.mark.filterwarnings("ignore:The tensor attributes self.lstm")
@pytest.mark.parametrize("name", NAMES)
def test_trains_and_exports_after_the_cut(name):
    _, inputs, _, small = halved(name)
    small = copy.deepcopy(small).train()
    args, kwargs = as_call(inputs)
    sum(v.square().mean() for v in tree_leaves(small(*args, **kwargs)) if isinstance(v, torch.Tensor)).backward()
    trained = [p for p in small.parameters() if p.grad is not None]
    assert trained
    assert all(p.grad.isfinite().all() for p in trained)
    torch.export.export(small.eval(), args, kwargs, strict=False)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("recurrent", "encoder")])
def test_macs_fall_as_planned(name):
    """Not of an LSTM, nor of PyTorch's encoder, whose attention the counter misses."""
    model, inputs, plan, small = halved(name)
    before, after = (macs(net, inputs) for net in (model, small))
    assert plan.saved["macs"] == pytest.approx(1 - after / before, abs=0.005)


def macs(model, inputs):
    """Return the multiplications that torch counts, which knows nothing of plans."""
    model = copy.deepcopy(model)
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")  # the counter knows no other attention on a CPU
    args, kwargs = as_call(inputs)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*args, **kwargs)
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("name", NAMES)
def test_falls_as_planned(name):
    model, _, plan, small = halved(name)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, small))
    assert 1 - after / before == pytest.approx(plan.saved["parameters"], abs=1e-9)
    assert after < before


@pytest.mark.parametrize("name", NAMES)
def test_leaves_nothing_else_alone(name):
    """What stays is the output, or named here with its reason."""
    _, _, plan, _ = halved(name)
    reasons = {w.removeprefix("cannot be cut: ") for w in plan.frozen.values()}
    odd = [w for w in plan.frozen.values() if not re.search("is the network's output|is never run", w)]
    for why in LEFT_ALONE.get(name, {}).values():
        assert any(re.match(why, w) for w in odd), reasons
    assert bool(odd) == (name in LEFT_ALONE), odd


TIED = {
    "resnet18", "resnet20", "mobilenet_v2", "regnet", "densenet", "inception", "resnext", "unet", "mlp", "flat",
    "shared",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(TIED))
def test_groups_agree_with_torch_prunings(name):
    """On what it handles: the same layers are tied; shapes it lacks and reasons to differ are left out of ``TIED``.

    It prunes the transformers here by their modules' names or not at all, reads a shuffle as fixed, and knows neither
    norms in groups nor attention without being told.
    """
    model, inputs, plan, _ = halved(name)
    model = copy.deepcopy(model)
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=inputs)
    kinds = (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)
    names = {module: n for n, module in model.named_modules() if isinstance(module, kinds)}
    theirs = set()
    for group in graph.get_all_groups(root_module_types=list(kinds)):
        tied = {
            names[i.dep.target.module]
            for i in group
            if graph.is_out_channel_pruning_fn(i.dep.handler) and i.dep.target.module in names
        }
        theirs.add(frozenset(tied))
    ends = {layer for layer, why in plan.frozen.items() if "output" in why}
    ours = {}
    for row in plan.groups:
        ours.setdefault(row.layers, frozenset(row.layers))
    assert set(ours.values()) == {t for t in theirs if t and not t & ends}
