"""Quantizer of one activation."""

import torch
from torch import Tensor

from lighten.quantization.activation_quantizers import ActivationQuantizers, Stage
from lighten.quantization.fake_quant import LEVELS, fake_quantize, fake_quantize_


class Quantizer:
    """Handle of one location: call it on the activation that passes there.

    Args:
        quantizers: the model's ranges.
        index: which of them.
        on_grid: the tensor is known to hold codes of this range already (the output of max pooling, say). Then only
            an exported graph needs the operators, so that the runtime sees them.
        shared: several operations quantize one and the same tensor here; it is done once.
        changed: what this returns is changed in place later, so that the backward pass must keep the input instead.
    """

    def __init__(
        self,
        quantizers: ActivationQuantizers,
        index: int,
        *,
        on_grid: bool = False,
        shared: bool = False,
        changed: bool = False,
    ) -> None:
        self.quantizers, self.index = quantizers, index
        self.on_grid, self.shared, self.changed = on_grid, shared, changed

    def __call__(self, x: Tensor) -> Tensor:
        """Observe and fake-quantize ``x`` as the stage demands."""
        quantizers = self.quantizers
        if self.on_grid and quantizers.stage != Stage.EXPORT:
            return x
        if not self.shared:
            return self._quantize(x)
        known = quantizers.shared.get(self.index)
        if known is None or known[0] is not x:
            known = quantizers.shared[self.index] = x, self._quantize(x)
        return known[1]

    def relu_fake_quantize_(self, x: Tensor, *, relu: bool) -> Tensor:
        """Do as ``__call__`` on ``relu(x)`` or ``x``, in place if ``x`` is the caller's own, of no use to others."""
        quantizers = self.quantizers
        known = quantizers.parameters_of[self.index]
        if known is None or not quantizers.rounds or not self._is_on():
            return self._quantize(torch.relu(x) if relu else x)
        scale, zero_point = known
        if relu and zero_point:  # no range of a ReLU's output, yet a checkpoint may say so
            x, relu = torch.relu(x), False
        if quantizers.learns:
            return quantizers.learned(self.index, x, relu=relu)
        watch = quantizers.watch(self.index, x, relu=relu) if quantizers.observing else None
        if self.changed or x._is_view():
            return fake_quantize(x, scale, zero_point, keep_input=self.changed, watch=watch)
        return fake_quantize_(x, scale, zero_point, watch=watch)

    def _is_on(self) -> bool:
        """Return whether activations are fake-quantized here now."""
        quantizers = self.quantizers
        chosen = quantizers.subset is None or self.index in quantizers.subset.locations
        return chosen and quantizers.stage == Stage.ON and not quantizers.waits(self.index)

    def _quantize(self, x: Tensor) -> Tensor:
        quantizers = self.quantizers
        known = quantizers.parameters_of[self.index]
        if not quantizers.rounds:
            return x
        if quantizers.stage == Stage.EXPORT:  # what training never reached stays in floating point
            if known is None:
                return x
            quantizers.written.add(self.index)
            return _quantize_dequantize(x, *known, signed=quantizers.signed)
        if known is None or not self._is_on():
            if quantizers.observing:
                quantizers.observe(self.index, x)
            return x
        if quantizers.learns:
            return quantizers.learned(self.index, x)
        watch = quantizers.watch(self.index, x) if quantizers.observing else None
        return fake_quantize(x, *known, keep_input=self.changed, watch=watch)


def _quantize_dequantize(x: Tensor, scale: float, zero_point: int, *, signed: bool) -> Tensor:
    ops, offset = torch.ops.quantized_decomposed, 128 if signed else 0
    codes = (scale, zero_point - offset, -offset, LEVELS - offset, torch.int8 if signed else torch.uint8)
    return ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *codes), *codes)
