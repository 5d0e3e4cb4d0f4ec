"""Networks that nobody drew, through each technique: nothing changes before it should, and the file is the network."""

import math
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, note, settings
from hypothesis import strategies as st
from random_networks import networks, tensors_of
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from lighten import export_onnx, mask_, plan_pruning, shrink
from lighten.delivery.runtimes.onnx_session import open_session
from lighten.errors import UserError
from lighten.pruning.mask import Masks
from lighten.quantization.activation_quantizers import Stage, quantizers_of
from lighten.quantization.insert import quantize_
from lighten.quantization.install import unquantize_
from lighten.utils.clone import clone
from lighten.utils.inputs import as_call

STEPS = 4
QUANTIZED, PRUNED, BOTH = "quantized", "pruned", "both"

hypothesis_settings = {
    "phases": [Phase.generate, Phase.shrink],
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


@pytest.mark.parametrize(("examples", "every"), [(10, 4), pytest.param(500, 1, marks=pytest.mark.slow)])
def test_nothing_is_silently_wrong(examples, every, tmp_path, monkeypatch):
    """Draw networks; of one in ``every`` the file is written too, which takes most of the time."""
    monkeypatch.setattr(
        ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib))
    )  # much of an export
    seen = Counter()

    @settings(max_examples=examples, **hypothesis_settings)
    @given(networks(), st.sampled_from([BOTH, QUANTIZED, PRUNED]))
    def check(drawn, technique):
        note(f"{technique}, seed {drawn.seed}\n{drawn.source}")
        assume(_runs(drawn))
        file = tmp_path / "network.onnx" if drawn.seed % every == 0 else None
        seen[_check(drawn, technique, file)] += 1

    check()
    assert seen["right"] > 0.5 * sum(seen.values()), seen


def _check(drawn, technique, file):
    """Take a network through a technique, up to its ``file`` if there is one; return how far it came."""
    example, model = drawn.inputs(0), drawn.build()
    plan = None
    if technique != QUANTIZED:
        plan = _unless_refused(lambda: plan_pruning(model, example, 0.5))
        assert _state(model) == _state(drawn.build()), "planning left something behind"
        if plan is None:
            return "not planned"
        _check_cut(drawn, plan)
        mask_(model, plan)
    if technique != PRUNED:
        before = [_outputs(model, example, training=training) for training in (False, True)]
        known = _state(model)
        if _unless_refused(lambda: quantize_(model, example_input=example)) is None:
            assert _state(model) == known, "what was refused left something behind"
            return "not quantized"
        after = [_outputs(model, example, training=training) for training in (False, True)]
        for one, other in zip(before, after, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)), "inserting changed the outputs"
        assert _state(unquantize_(clone(model))) == known, "inserting left something behind"
    _train(model, [drawn.inputs(seed) for seed in range(STEPS)], plan)
    example = drawn.inputs(STEPS - 1)
    expected = _outputs(model, example)
    if technique != PRUNED:
        for ours, floating in zip(expected, _outputs(unquantize_(clone(model)), example), strict=True):
            assert (ours - floating).norm() <= 0.5 * floating.norm() + 1e-6, "int8 is far from float"
    small = model if plan is None else shrink(model, plan)
    if file is None:
        return "right"
    if _unless_refused(lambda: export_onnx(small, example, file)) is None:
        return "not written"
    session = open_session(file, file, threads=1, optimise=False)
    given_names = [entry.name for entry in session.get_inputs()]
    args, kwargs = as_call(example)
    feed = dict(zip(given_names, [*args, *kwargs.values()], strict=True))
    written = session.run(None, {name: x.numpy() for name, x in feed.items()})
    assert len(written) == len(expected)
    for ours, theirs in zip(expected, written, strict=True):
        assert ours.shape == theirs.shape
        gap, largest = np.abs(ours.numpy() - theirs).max(), float(ours.abs().max())
        assert gap <= (1e-4 if technique == PRUNED else 0.03) * largest + 1e-6, "the file is another network"
    return "right"


def _check_cut(drawn, plan):
    """Masked and shrunk compute the same, in both modes."""
    masked = drawn.build()
    small = shrink(masked, plan)
    mask_(masked, plan)
    draws = "rand" in drawn.source or "rop" in drawn.source  # of other numbers where there are fewer channels
    for seed, training in ((1, False), (2, True))[: 1 if draws else 2]:
        inputs = _double(drawn.inputs(seed))
        one, other = (_outputs(m.double(), inputs, training=training) for m in (masked, small))
        for a, b in zip(one, other, strict=True):
            assert (a - b).abs().max() <= 1e-9 * max(1.0, float(a.abs().max())), "masked and shrunk differ"


def _train(model, batches, plan):
    """Do what the callbacks do in a fit of a few steps; leave the model in eval mode."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    masks = Masks(model, plan) if plan is not None else None
    quantizers = quantizers_of(model) if hasattr(model, "activation_ranges") else None
    model.train()
    for step, batch in enumerate(batches):
        torch.manual_seed(step)
        if quantizers is not None:
            quantizers.stage, quantizers.observing = max(quantizers.stage, Stage.OBSERVE), True
        _step(model, batch, optimizer)
        if masks is not None:
            masks.apply_()
        if quantizers is not None:
            quantizers.update()
            quantizers.stage, quantizers.observing = Stage.ON, False
    model.eval()


def _step(model, batch, optimizer):
    args, kwargs = as_call(batch)
    loss = sum(x.square().mean() for x in tensors_of(model(*args, **kwargs)))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def _runs(drawn):
    """Return whether a network is one that can be trained in floating point, and puts out usable numbers."""
    try:
        model = drawn.build()
        _train(model, [drawn.inputs(seed) for seed in range(2)], None)
        outputs = _outputs(model, drawn.inputs(0))
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return False
    return all(1e-3 < float(x.abs().max()) < 1e3 for x in outputs)


def _outputs(model, inputs, *, training=False):
    """Return the tensors that a copy of ``model`` puts out."""
    args, kwargs = as_call(inputs)
    torch.manual_seed(0)
    with torch.no_grad():
        return [x.clone() for x in tensors_of(clone(model).train(training)(*args, **kwargs))]


def _unless_refused(function):
    """Return what ``function`` does, or ``None`` where it refuses in one line."""
    try:
        return function()
    except UserError as error:
        if "\n" in str(error):
            raise
        return None


def _double(inputs):
    if isinstance(inputs, dict):
        return {name: _double((x,))[0] for name, x in inputs.items()}
    return tuple(x.double() if x.is_floating_point() else x for x in inputs)


def _state(model):
    """Return all that modules hold, by module, as values that can be compared."""
    return {
        name: {**_plain(vars(module)), "class": type(module).__qualname__} for name, module in model.named_modules()
    }


def _plain(value):
    if isinstance(value, Tensor):
        return value.detach().tolist(), value.requires_grad
    if isinstance(value, dict) and all(isinstance(key, int) for key in value):
        return [_plain(item) for item in value.values()]  # hooks are counted over all models
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    return value if isinstance(value, int | float | str | bool | None) else type(value).__qualname__
