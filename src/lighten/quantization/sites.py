"""The quantizers of a model's activations: one bank at its root, one handle a place."""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lighten.errors import UserError
from lighten.quantization.fake_quant import (
    LEVELS,
    Watch,
    fake_quantize,
    fake_quantize_,
    fake_quantize_learned,
    kernels_for,
    quantization_parameters,
)
from lighten.quantization.histogram import Histogram, histogram, merge, reduce_histograms
from lighten.quantization.observe import rule_of


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


@dataclass(frozen=True)
class Only:
    """What alone is fake-quantized, while the rest computes in floating point: places by index, layers themselves."""

    places: frozenset[int]
    layers: frozenset[nn.Module]


class ActivationRanges(nn.Module):
    """Ranges of every quantized activation of a model, as buffers, and the stage that the model is in.

    It sits at the model's root, so that one tensor holds all ranges: one reduction over ranks, one update, one
    synchronisation a step, however many places there are.

    Args:
        names: of the places, in order of use.
        ranges: a name from ``observe.RULES``.
    """

    low: Tensor
    high: Tensor
    stage_code: Tensor
    moments: Tensor

    def __init__(self, names: Sequence[str], ranges: str) -> None:
        super().__init__()
        self.names = list(names)
        self.observing, self.signed = False, False
        self.sites = CallSites()
        self.calls: dict[str, Any] = {}
        self.left: dict[str, str] = {}
        self.shared: dict[int, tuple[Tensor, Tensor]] = {}
        self.only: Only | None = None
        self.rule = rule_of(ranges)
        self._seen: dict[int, Tensor] = {}
        self._rows: Tensor | None = None
        self._histograms: dict[int, Histogram] = {}
        self._gradient: Tensor | None = None
        self.register_buffer("low", torch.full((len(names),), torch.nan))
        self.register_buffer("high", torch.full((len(names),), torch.nan))
        self.register_buffer("stage_code", torch.zeros((), dtype=torch.uint8))
        if self.rule.learned:
            self.register_buffer("moments", torch.zeros(3, len(names)))
        self.register_load_state_dict_post_hook(_refresh)
        self.refresh()

    def reset_parameters(self) -> None:
        """Begin anew: what a model from the meta device asks of its modules once they have memory."""
        for name, buffer in self.named_buffers():
            buffer.fill_(torch.nan if name in ("low", "high") else 0)
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

    @property
    def learns(self) -> bool:
        """Whether step sizes are learned now."""
        return self.observing and self.rule.learned and self._stage == Stage.ON

    def refresh(self) -> None:
        """Read stage and ranges from the buffers; runs after they were loaded or updated."""
        self._stage = Stage(int(self.stage_code))
        bounds = zip(self.names, self.low.tolist(), self.high.tolist(), strict=True)
        self.parameters_of = [_parameters(name, low, high) if low == low else None for name, low, high in bounds]

    def restart(self, ranges: str | None = None) -> None:
        """Forget all ranges and begin to observe; ``ranges`` may name another rule."""
        if ranges is not None:
            self.rule = replace(rule_of(ranges), learned=False)
        self.low.fill_(torch.nan)
        self.high.fill_(torch.nan)
        self._seen, self._rows, self._histograms = {}, None, {}
        self.refresh()
        self.stage, self.observing = Stage.OBSERVE, True

    def observe(self, index: int, x: Tensor, *, relu: bool = False) -> None:
        """Remember what ``x``, or its ReLU, is like at place ``index`` until the next ``update``."""
        x = x.detach()
        if not x.numel():
            return
        low, high = x.amin().float(), x.amax().float()  # on CPUs seven times as fast together as torch.aminmax
        if relu:
            low, high = low.clamp_min(0), high.clamp_min(0)
        seen = torch.stack([-low, high])
        self._seen[index] = torch.maximum(seen, self._seen[index]) if index in self._seen else seen
        if self.rule.estimate is not None and not self.learns:
            new = histogram(x.relu() if relu else x)
            self._histograms[index] = merge(self._histograms[index], new) if index in self._histograms else new

    def watch(self, index: int, x: Tensor, *, relu: bool = False) -> Watch | None:
        """Do as ``observe``, or return how the kernel that will round ``x`` can do it."""
        if self.rule.estimate is not None or not x.numel() or kernels_for(x) is None:
            self.observe(index, x, relu=relu)
            return None
        if self._rows is None:
            self._rows = torch.full((len(self.names), 2), -torch.inf, device=x.device)
        if index not in self._seen:
            self._seen[index] = self._rows[index]
        return Watch(self._seen[index], relu)

    def learned(self, index: int, x: Tensor, *, relu: bool = False) -> Tensor:
        """Fake-quantize ``x``, or its ReLU, such that its step size learns in the backward pass."""
        self.observe(index, x, relu=relu)
        if self._gradient is None:
            self._gradient = torch.zeros_like(self.low)
        scale, zero_point = self.parameters_of[index] or (1.0, 0)
        return fake_quantize_learned(x, scale, zero_point, self._gradient[index], relu=relu)

    def forget_batch(self) -> None:
        """Drop what was observed since the last update: of a step that is passed over."""
        self._seen, self._rows, self._histograms, self._gradient = {}, None, {}, None
        self.observing = False

    def update(self, when: str = "") -> None:
        """Fold what was observed since the last call into the ranges, over all ranks alike.

        Args:
            when: told where something was not finite, such as ``" at step 3"``.

        Raises:
            UserError: if a place was never reached, or its activations were not finite.
        """
        missing = [name for i, name in enumerate(self.names) if i not in self._seen and self.parameters_of[i] is None]
        if missing:
            raise UserError(f"quantize: {missing[0]!r} was not reached by the forward pass; name it in exclude")
        low, high = self._reduced_extremes(when)
        reached = high > -torch.inf
        if not self.learns and self.rule.estimate is not None:
            low, high = self._estimates(low, high)
        if self.learns:
            _learn(self.low, self.high, self.moments, self._reduced_gradient())
        else:
            low, high = self.rule.follow(self.low.float(), self.high.float(), low, high)
            self.low.copy_(torch.where(reached, low, self.low))
            self.high.copy_(torch.where(reached, high, self.high))
        self.refresh()

    def _reduced_extremes(self, when: str) -> tuple[Tensor, Tensor]:
        """Return the extremes seen, over all ranks; infinite the wrong way round where nothing was."""
        if not self.names:
            return self.low, self.high
        nothing = torch.full((2,), -torch.inf, device=self.low.device)
        extremes = torch.stack([self._seen.get(i, nothing) for i in range(len(self.names))])
        self._seen, self._rows = {}, None
        finite = extremes.isfinite() | (extremes == -torch.inf)
        extremes = torch.where(finite, extremes, torch.inf)
        if _is_parallel():
            dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
        for name, (low, high) in zip(self.names, extremes.tolist(), strict=True):
            if max(low, high) == math.inf:
                raise UserError(f"quantize: activations at {name!r} are not finite{when}; lower the learning rate")
        return -extremes[:, 0], extremes[:, 1]

    def _estimates(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the rule makes of the histograms seen, over all ranks."""
        assert self.rule.estimate is not None
        histograms, self._histograms = self._histograms, {}
        reduced = reduce_histograms([histograms.get(i) for i in range(len(self.names))], low, high)
        pairs = [self.rule.estimate(h) if h is not None else (math.inf, -math.inf) for h in reduced]
        estimates = self.low.new_tensor(pairs)
        return estimates[:, 0], estimates[:, 1]

    def _reduced_gradient(self) -> Tensor:
        gradient = torch.zeros_like(self.low) if self._gradient is None else self._gradient
        self._gradient = None
        if _is_parallel():
            dist.all_reduce(gradient, op=dist.ReduceOp.SUM)
        return gradient

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
        shared: several operations quantize one and the same tensor here; it is done once.
        changed: what this returns is changed in place later, so that the backward pass must keep the input instead.
    """

    def __init__(
        self, bank: ActivationRanges, index: int, *, on_grid: bool = False, shared: bool = False, changed: bool = False
    ) -> None:
        self.bank, self.index, self.on_grid, self.shared, self.changed = bank, index, on_grid, shared, changed

    def __call__(self, x: Tensor) -> Tensor:
        """Observe and fake-quantize ``x`` as the bank's stage demands."""
        bank = self.bank
        if self.on_grid and bank.stage != Stage.EXPORT:
            return x
        if not self.shared:
            return self._quantize(x)
        known = bank.shared.get(self.index)
        if known is None or known[0] is not x:
            known = bank.shared[self.index] = x, self._quantize(x)
        return known[1]

    def finish_(self, x: Tensor, *, relu: bool) -> Tensor:
        """Do as ``__call__`` on ``relu(x)`` or ``x``, in place if ``x`` is the caller's own, of no use to others."""
        bank = self.bank
        if bank.stage != Stage.ON or self._is_off():
            return self._quantize(torch.relu(x) if relu else x)
        scale, zero_point = self.parameters()
        if relu and zero_point:  # no range of a ReLU's output, yet a checkpoint may say so
            x, relu = torch.relu(x), False
        if bank.learns:
            return bank.learned(self.index, x, relu=relu)
        watch = bank.watch(self.index, x, relu=relu) if bank.observing else None
        if self.changed or x._is_view():
            return fake_quantize(x, scale, zero_point, keep_input=self.changed, watch=watch)
        return fake_quantize_(x, scale, zero_point, watch=watch)

    def parameters(self) -> tuple[float, int]:
        """Return scale and zero point.

        Raises:
            UserError: if the range is not known yet.
        """
        parameters = self.bank.parameters_of[self.index]
        if parameters is None:
            raise UserError(f"quantize: {self.bank.names[self.index]!r} has no range yet; run data through it first")
        return parameters

    def _is_off(self) -> bool:
        return self.bank.only is not None and self.index not in self.bank.only.places

    def _quantize(self, x: Tensor) -> Tensor:
        bank = self.bank
        if bank.stage == Stage.EXPORT:
            return _quantize_dequantize(x, *self.parameters(), signed=bank.signed)
        if bank.learns:
            return bank.learned(self.index, x)
        if bank.stage != Stage.ON or self._is_off():
            if bank.observing:
                bank.observe(self.index, x)
            return x
        watch = bank.watch(self.index, x) if bank.observing else None
        return fake_quantize(x, *self.parameters(), keep_input=self.changed, watch=watch)


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


LEARNING_RATE, BETAS = 0.01, (0.9, 0.999)
"""Of the learned step sizes: one percent a step at most."""


def _learn(low: Tensor, high: Tensor, moments: Tensor, gradient: Tensor) -> None:
    """Move ranges by one step of Adam on the logarithm of their step size; zero points stay.

    In the logarithm one rate serves all magnitudes (Jain et al. 2020, "Trained Quantization Thresholds", section 4).
    Infinite gradients, of a loss that was scaled too high, are left out.
    """
    first, second, steps = moments
    usable = gradient.isfinite()
    gradient = torch.where(usable, gradient, 0.0)
    steps.add_(usable)
    first.copy_(torch.where(usable, torch.lerp(gradient, first, BETAS[0]), first))
    second.copy_(torch.where(usable, torch.lerp(gradient.square(), second, BETAS[1]), second))
    steps_done = steps.clamp_min(1)
    mean, square = first / (1 - BETAS[0] ** steps_done), second / (1 - BETAS[1] ** steps_done)
    factor = torch.exp(-LEARNING_RATE * mean / (square.sqrt() + 1e-12))
    low.mul_(factor)
    high.mul_(factor)


def _is_parallel() -> bool:
    return dist.is_available() and dist.is_initialized()


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
