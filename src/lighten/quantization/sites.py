"""The quantizers of a model's activations: one bank at its root, one handle a place."""

import enum
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lighten.errors import UserError
from lighten.quantization.fake_quant import LEVELS, fake_quantize, quantization_parameters
from lighten.quantization.observe import range_update


class Stage(enum.IntEnum):
    """How far a model is on its way to integers."""

    OFF = 0
    """Plain float; the model computes what it did before."""
    OBSERVE = 1
    """Batch norm folded, weights fake-quantized, activations watched but left alone: their ranges are not known yet."""
    ON = 2
    """Everything fake-quantized."""
    EXPORT = 3
    """Quantize and dequantize are emitted as operators of the graph."""


class ActivationRanges(nn.Module):
    """Ranges of every quantized activation of a model, as buffers, and the stage that the model is in.

    It sits at the model's root, so that one tensor holds all ranges: one reduction over ranks, one update, one
    synchronisation a step, however many places there are.

    Args:
        names: of the places, in order of use.
        ranges: ``"moving_average"`` or ``"min_max"``.
    """

    low: Tensor
    high: Tensor
    stage_code: Tensor

    def __init__(self, names: Sequence[str], ranges: str) -> None:
        super().__init__()
        self.names = list(names)
        self.observing, self.signed = False, False
        self.sites = CallSites()
        self.calls: dict[str, Any] = {}
        self._update = range_update(ranges)
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}
        self.register_buffer("low", torch.full((len(names),), torch.nan))
        self.register_buffer("high", torch.full((len(names),), torch.nan))
        self.register_buffer("stage_code", torch.zeros((), dtype=torch.uint8))
        self.register_load_state_dict_post_hook(_refresh)
        self.refresh()

    def forward(self, x: Any) -> Any:
        """Return ``x``: at the root of an ``nn.Sequential`` the bank is called as its last entry."""
        return x

    @property
    def stage(self) -> Stage:
        """The model's stage; setting it is what enables fake-quantization."""
        return self._stage

    @stage.setter
    def stage(self, stage: Stage) -> None:
        self.stage_code.fill_(int(stage))
        self._stage = stage

    def refresh(self) -> None:
        """Read stage and ranges from the buffers; runs after they were loaded or updated."""
        self._stage = Stage(int(self.stage_code))
        bounds = zip(self.names, self.low.tolist(), self.high.tolist(), strict=True)
        self.parameters_of = [_parameters(name, low, high) if low == low else None for name, low, high in bounds]

    def restart(self, ranges: str | None = None) -> None:
        """Forget all ranges and begin to observe; ``ranges`` may name another update rule."""
        if ranges is not None:
            self._update = range_update(ranges)
        self.low.fill_(torch.nan)
        self.high.fill_(torch.nan)
        self.refresh()
        self.stage, self.observing = Stage.OBSERVE, True

    def observe(self, index: int, x: Tensor) -> None:
        """Remember the extremes of ``x`` at place ``index`` until the next ``update``."""
        x = x.detach()
        low, high = x.amin(), x.amax()  # ten times as fast together as torch.aminmax
        low, high = low.float(), high.float()
        if index in self._seen:
            low, high = torch.minimum(low, self._seen[index][0]), torch.maximum(high, self._seen[index][1])
        self._seen[index] = low, high

    def update(self) -> None:
        """Fold what was observed since the last call into the ranges, over all ranks alike.

        Raises:
            UserError: if a place was never reached, or its activations were not finite.
        """
        missing = [name for i, name in enumerate(self.names) if i not in self._seen and self.parameters_of[i] is None]
        if missing:
            raise UserError(f"quantize: {missing[0]!r} was not reached by the forward pass; name it in exclude")
        nothing = (self.low.new_tensor(torch.inf), self.low.new_tensor(-torch.inf))
        seen = [self._seen.get(i, nothing) for i in range(len(self.names))]
        self._seen = {}
        extremes = torch.stack([torch.stack([-low, high]) for low, high in seen]) if seen else self.low.new_zeros(0, 2)
        extremes = torch.nan_to_num(extremes, nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
        low, high = self._update(self.low.float(), self.high.float(), -extremes[:, 0], extremes[:, 1])
        reached = extremes[:, 1] > -torch.inf
        self.low.copy_(torch.where(reached, low, self.low))
        self.high.copy_(torch.where(reached, high, self.high))
        self.refresh()

    def input_scale(self, index: int) -> float | None:
        """Return the scale at place ``index``, or ``None`` while its range is unknown."""
        parameters = self.parameters_of[index]
        return parameters[0] if parameters else None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Accept a checkpoint of the float model: the ranges then stay unknown and the stage off."""
        for name, buffer in self.named_buffers():
            state_dict.setdefault(prefix + name, buffer)
        super()._load_from_state_dict(state_dict, prefix, *args)


class Quantizer:
    """Handle of one place in a bank: call it on the activation that passes there.

    Args:
        bank: the model's ranges.
        index: which of them.
        on_grid: the tensor is known to hold codes of this range already (the output of max pooling, say). Then only
            an exported graph needs the operators, so that the runtime sees them.
    """

    def __init__(self, bank: ActivationRanges, index: int, *, on_grid: bool = False) -> None:
        self.bank, self.index, self.on_grid = bank, index, on_grid

    def __call__(self, x: Tensor) -> Tensor:
        """Observe and fake-quantize ``x`` as the bank's stage demands."""
        bank = self.bank
        if bank.stage == Stage.EXPORT:
            return _quantize_dequantize(x, *self.parameters(), signed=bank.signed)
        if self.on_grid:
            return x
        if bank.observing:
            bank.observe(self.index, x)
        return fake_quantize(x, *self.parameters()) if bank.stage == Stage.ON else x

    def parameters(self) -> tuple[float, int]:
        """Return scale and zero point.

        Raises:
            UserError: if the range is not known yet.
        """
        parameters = self.bank.parameters_of[self.index]
        if parameters is None:
            raise UserError(f"quantize: {self.bank.names[self.index]!r} has no range yet; run data through it first")
        return parameters


class CallSites:
    """The functions that matter in the forward of a module, told apart by order: first add, second add, first pool.

    A module is on the stack while its forward runs; ``None`` stands for code that is not watched.
    """

    def __init__(self) -> None:
        self._stack: list[tuple[str, dict[str, int]] | None] = []

    def push(self, module: str | None) -> None:
        """Make ``module`` the innermost one."""
        self._stack.append(None if module is None else (module, {}))

    def pop(self) -> None:
        """Leave the innermost module."""
        self._stack.pop()

    def __bool__(self) -> bool:
        """Whether a watched forward is running."""
        return bool(self._stack)

    def next(self, kind: str) -> str | None:
        """Return the name of this call, ``"layer1.0:add0"``, or ``None`` where nobody watches."""
        if not self._stack or self._stack[-1] is None:
            return None
        module, counts = self._stack[-1]
        counts[kind] = counts.get(kind, -1) + 1
        return f"{module}:{kind}{counts[kind]}"


def _refresh(bank: nn.Module, _keys: Any) -> None:
    assert isinstance(bank, ActivationRanges)
    bank.refresh()


def _parameters(name: str, low: float, high: float) -> tuple[float, int]:
    try:
        return quantization_parameters(low, high)
    except ValueError as error:
        raise UserError(
            f"quantize: activations at {name!r} are not finite ({error}); lower the learning rate"
        ) from error


def _quantize_dequantize(x: Tensor, scale: float, zero_point: int, *, signed: bool) -> Tensor:
    ops, offset = torch.ops.quantized_decomposed, 128 if signed else 0
    codes = (scale, zero_point - offset, -offset, LEVELS - offset, torch.int8 if signed else torch.uint8)
    return ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *codes), *codes)
