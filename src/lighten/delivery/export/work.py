"""Parameters and multiply-accumulates of a module, which files that cannot be counted carry along."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lighten.delivery.export.dimensions import batch_size, error_of, with_samples
from lighten.delivery.export.prepare import Source
from lighten.quantization.integer_layers import IntegerEmbedding, IntegerLayer, QdqFormat


def work_of_sample(source: Source) -> dict[str, int]:
    """Return ``parameters`` and ``macs`` of one sample; of a fixed batch's share, where the network takes no other."""
    one = with_samples(source.inputs, 1)
    samples = 1 if error_of(source.network, one) is None else batch_size(source.inputs) or 1
    found = work_of(source.converted(QdqFormat()), one if samples == 1 else source.inputs)
    return {**found, "macs": found["macs"] // samples}


def work_of(module: nn.Module, inputs: Sequence[Any]) -> dict[str, int]:
    """Return ``parameters`` and ``macs`` of a module, or of one that ``convert`` has made, called with ``inputs``."""
    stored = [
        value.numel()
        for layer in module.modules()
        if isinstance(layer, IntegerLayer | IntegerEmbedding)
        for name, value in layer.named_buffers(recurse=False)
        if name in ("stored_weight", "stored_bias")
    ]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    parameters = sum(p.numel() for p in module.parameters()) + sum(stored)
    return {"parameters": parameters, "macs": counter.get_total_flops() // 2}
