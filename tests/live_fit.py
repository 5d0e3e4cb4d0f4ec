"""A short training with pruning, by masks or by cuts, in plain PyTorch."""

import copy

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lighten.pruning.planner import trace_structure
from lighten.pruning.pruner import Pruner
from lighten.pruning.settings import Settings
from lighten.utils.inputs import as_call
from lighten.utils.optimizer_state import slice_state_

RAMPS = {2: 0.3, 4: 0.6, 6: 0.8, 8: 1.0}
"""Share of the amount that is removed after a step."""


def still(model):
    """Return ``model`` without what draws random numbers, whose draws depend on widths."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return model


def trained(model, example, optimizer, *, live, steps=10, ramps=RAMPS, clip=None, **settings):
    """Return a pruned copy of ``model``, its optimizer and its pruner, after some steps in float64."""
    torch.manual_seed(0)
    model = still(copy.deepcopy(model)).double().train()
    args, kwargs = as_call(example)
    double = lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t  # noqa: E731
    call = tuple(map(double, args)), {name: double(value) for name, value in kwargs.items()}
    pruner = Pruner(model, trace_structure(model, call), Settings(0.5, **settings))
    optimizer = optimizer([p for p in model.parameters() if p.requires_grad])
    pruner.mask()
    for step in range(steps):
        loss = sum(
            (value * (1 + torch.arange(value.numel()).reshape(value.shape) % 7)).square().mean()
            for value in tree_leaves(model(*call[0], **call[1]))
            if isinstance(value, Tensor) and value.requires_grad
        )
        optimizer.zero_grad()
        loss.backward()
        if settings.get("score") == "taylor":
            pruner.accumulate_gradients()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        pruner.zero()
        if step in ramps:
            slices = pruner.update(ramps[step], final=ramps[step] == 1.0, cut=live)
            slice_state_([optimizer], slices)
    pruner.finish()
    return model, optimizer, pruner
