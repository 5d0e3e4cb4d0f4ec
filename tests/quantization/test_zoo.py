"""Unfamiliar networks: fake-quantized near float, converted bit-equal to fake-quantized, trainable in between."""

import pytest
import torch
from zoo import ZOO

from lighten.quantization import calibrate_, convert, quantize_
from lighten.quantization.activation_quantizers import quantizers_of
from lighten.utils.inputs import as_call, logits_of

FAR = {"regnet": 0.15}
"""Relative errors allowed where 8 bits are coarse for an untrained network; elsewhere 0.05."""


@pytest.mark.parametrize("name", ZOO)
def test_network_goes_through_int8(name):
    build, example = ZOO[name]
    torch.manual_seed(0)
    model, inputs = build().eval(), example()
    args, kwargs = as_call(inputs)
    batch = inputs if isinstance(inputs, dict) else (inputs, None)
    with torch.no_grad():
        floating = logits_of(model(*args, **kwargs)).double()
        calibrate_(quantize_(model, example_input=inputs, weight_bits=8), [batch])
        quantized = logits_of(model(*args, **kwargs))
        assert torch.equal(logits_of(convert(model)(*args, **kwargs)), quantized)
    if floating.abs().max() > 1e-6:
        assert (quantized - floating).norm() <= FAR.get(name, 0.05) * floating.norm()
        assert not torch.equal(quantized.double(), floating)

    model.train()
    quantizers_of(model).observing = True
    logits_of(model(*args, **kwargs)).square().mean().backward()
    quantizers_of(model).update()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
