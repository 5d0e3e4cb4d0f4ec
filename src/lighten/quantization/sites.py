"""The quantizers of a model's activations: one bank at its root, one handle a place."""

import enum
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lighten.errors import UserError
from lighten.quantization.calls import Calls, Identity, Spot
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
    """Ranges of every quantized activation of a model, and the stage that the model is in.

    It sits at the model's root, so that one tensor holds all ranges: one reduction over ranks, one update, one
    synchronisation a step, however many places there are.

    What it holds is in the model's state dict, as tensors ``low``, ``high`` and ``settled`` (places,), which says
    whether a place was seen with all before it, ``stage_code`` and ``format`` (), and ``moments`` (3, places) of
    learned ranges. They are no buffers, so that nobody averages, swaps or broadcasts them with the weights, and the
    model's own buffers keep their order.

    Args:
        names: of the places, in order of use.
        ranges: a name from ``observe.RULES``.
        weight_bits: of the layers.
    """

    def __init__(self, names: Sequence[str], ranges: str, weight_bits: int = 8) -> None:
        super().__init__()
        self.names, self.weight_bits = list(names), weight_bits
        self.observing, self.signed, self.rounds, self.held = False, False, True, False
        self.placement: Any = None
        self.calls, self.sites = Calls(), Sites()
        self.left: dict[str, str] = {}
        self.untrained: set[str] = set()
        self.written: set[int] = set()
        self.shared: dict[int, tuple[Tensor, Tensor]] = {}
        self.only: Only | None = None
        self.rule = rule_of(ranges)
        self.low, self.high = torch.full((len(names),), torch.nan), torch.full((len(names),), torch.nan)
        self.moments = torch.zeros(3, len(names)) if self.rule.learned else None
        self.settled = torch.zeros(len(names), dtype=torch.bool)
        self._stage = Stage.OFF
        self._seen: dict[int, Tensor] = {}
        self._rows: Tensor | None = None
        self._histograms: dict[int, Histogram] = {}
        self._gradient: Tensor | None = None
        self.refresh()

    def reset_parameters(self) -> None:
        """Forget everything: what a model from the meta device asks of its modules once they have memory."""
        self.low.fill_(torch.nan)
        self.high.fill_(torch.nan)
        self.settled.zero_()
        if self.moments is not None:
            self.moments.zero_()
        self._stage = Stage.OFF
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
        self._stage = stage

    @property
    def computes_int8(self) -> bool:
        """Whether layers compute their norm and ReLU too, as they do in the file."""
        return self._stage == Stage.ON

    @property
    def learns(self) -> bool:
        """Whether step sizes are learned now."""
        return self.observing and self.rule.learned and self._stage == Stage.ON

    def switch_off_(self) -> None:
        """Let the model compute in floating point, whatever its stage was."""
        self._stage = Stage.OFF

    def refresh(self) -> None:
        """Read the parameters of all places from their ranges; runs after these were loaded or updated."""
        bounds = zip(self.names, self.low.tolist(), self.high.tolist(), strict=True)
        self.parameters_of = [_parameters(name, low, high) if low == low else None for name, low, high in bounds]
        self._settled = self.settled.tolist()

    def waits(self, index: int) -> bool:
        """Return whether a place is only watched: its range is unknown, or of steps that had skipped a place before."""
        return self.parameters_of[index] is None or (self.observing and not self._settled[index])

    def follow(self, other: "ActivationRanges") -> None:
        """Take over stage and ranges of ``other``, the bank of a model of which this is a copy."""
        self._stage = other._stage
        for name, tensor in other.tensors().items():
            self.tensors()[name].copy_(tensor)
        self.refresh()

    def tensors(self) -> dict[str, Tensor]:
        """Return what is known of the places, by name."""
        moments = {} if self.moments is None else {"moments": self.moments}
        return {"low": self.low, "high": self.high, "settled": self.settled, **moments}

    def restart(self, ranges: str | None = None) -> None:
        """Forget all ranges and begin to observe; ``ranges`` may name another rule."""
        if ranges is not None:
            self.rule = replace(rule_of(ranges), learned=False)
        self.low.fill_(torch.nan)
        self.high.fill_(torch.nan)
        self.settled.zero_()
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
        known = self.parameters_of[index]
        assert known is not None
        scale, zero_point = known
        return fake_quantize_learned(x, scale, zero_point, self._gradient[index], relu=relu)

    def forget_batch(self) -> None:
        """Drop what was observed since the last update: of a step that is passed over."""
        self._seen, self._rows, self._histograms, self._gradient = {}, None, {}, None
        self.observing = False

    def update(self, when: str = "") -> None:
        """Fold what was observed since the last call into the ranges, over all ranks alike.

        A step may skip a block: a place that was not reached keeps its range, and those behind it may only grow wider,
        as they see less than they will in evaluation. Until a step has skipped nothing before them, they are watched
        alone.

        Args:
            when: told where something was not finite, such as ``" at step 3"``.

        Raises:
            UserError: if activations were not finite.
        """
        low, high, whole = self._reduced_extremes(when)
        reached = high > -torch.inf
        if self.learns:
            assert self.moments is not None
            reached &= self.low.isnan()  # a place that is reached for the first time begins with its extremes
            self.settled |= reached
            _learn(self.low, self.high, self.moments, self._reduced_gradient())
        else:
            if self.rule.estimate is not None:
                low, high = self._estimates(low, high)
            low, high = torch.where(whole, low, low.fmin(self.low)), torch.where(whole, high, high.fmax(self.high))
            first = ~self.settled
            old_low, old_high = (torch.where(first, torch.nan, old) for old in (self.low, self.high))
            low, high = self.rule.follow(old_low, old_high, low, high)
            self.settled |= whole
        self.low.copy_(torch.where(reached, low, self.low))
        self.high.copy_(torch.where(reached, high, self.high))
        self.refresh()

    def _reduced_extremes(self, when: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return the extremes seen, over all ranks, and where a rank had skipped no place before.

        Extremes are infinite the wrong way round where nothing was.
        """
        if not self.names:
            return self.low, self.high, self.settled
        skipped, rows = 0.0, []
        nothing = torch.full((2,), -torch.inf, device=self.low.device)
        for i, name in enumerate(self.names):
            skipped = skipped if i in self._seen or name in self.untrained else -1.0
            rows.append(torch.cat([self._seen.get(i, nothing), nothing.new_full((1,), skipped)]))
        extremes = torch.stack(rows)
        self._seen, self._rows = {}, None
        finite = extremes.isfinite() | (extremes == -torch.inf)
        extremes = torch.where(finite, extremes, torch.inf)
        if _is_parallel():
            dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
        for name, (low, high, _) in zip(self.names, extremes.tolist(), strict=True):
            if max(low, high) == math.inf:
                raise UserError(f"quantize: activations at {name!r} are not finite{when}; lower the learning rate")
        return -extremes[:, 0], extremes[:, 1], (extremes[:, 2] == 0) & (extremes[:, 1] > -torch.inf)

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

    def unknown(self) -> list[str]:
        """Return the places that nothing has reached yet."""
        return [name for name, known in zip(self.names, self.parameters_of, strict=True) if known is None]

    def unwritten(self) -> list[str]:
        """Return the places with a range that the graph, once traced, has no operators for."""
        known = enumerate(zip(self.names, self.parameters_of, strict=True))
        return [name for i, (name, parameters) in known if parameters is not None and i not in self.written]

    @property
    def stage_code(self) -> Tensor:
        """The stage as the state dict has it."""
        return torch.tensor(int(self._stage), dtype=torch.uint8)

    @property
    def format(self) -> Tensor:
        """A number that stands for what ranges mean: the places and the bits of weights."""
        text = json.dumps([self.names, self.weight_bits])
        return torch.tensor(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))

    def _apply(self, fn: Any, recurse: bool = True) -> "ActivationRanges":
        """Go to the device that the model goes to; ranges stay in float32."""
        device = fn(torch.zeros((), device=self.low.device)).device
        self.low, self.high, self.settled = (x.to(device) for x in (self.low, self.high, self.settled))
        if self.moments is not None:
            self.moments = self.moments.to(device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        state = {**self.tensors(), "stage_code": self.stage_code, "format": self.format}
        destination.update({prefix + name: tensor.clone() for name, tensor in state.items()})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *_args: Any) -> None:
        """Accept a checkpoint of the float model: the ranges then stay unknown and the stage off.

        While ``held``, by a fit that moves them, ranges stay what they are: weights alone are swapped in and out.

        Raises:
            UserError: if it is of a model that was quantized otherwise.
        """
        known = {name: state_dict[prefix + name] for name in self.tensors() if prefix + name in state_dict}
        if "low" in known:  # written before there was more than one way to have a range
            known.setdefault("settled", ~known["low"].isnan())
        if self.held or len(known) < len(self.tensors()) or prefix + "stage_code" not in state_dict:
            return
        written = state_dict.get(prefix + "format")
        if known["low"].shape != self.low.shape or (written is not None and int(written) != int(self.format)):
            raise UserError(
                f"the checkpoint's network was quantized otherwise: {len(known['low'])} places, this one has "
                f"{len(self.names)} with weight_bits={self.weight_bits}; give the same network, weight_bits and exclude"
            )
        for name, tensor in known.items():
            self.tensors()[name].copy_(tensor)
        self._stage = Stage(int(state_dict[prefix + "stage_code"]))
        self.refresh()


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
        known = bank.parameters_of[self.index]
        if bank.stage != Stage.ON or known is None or bank.waits(self.index) or self._is_off() or not bank.rounds:
            return self._quantize(torch.relu(x) if relu else x)
        scale, zero_point = known
        if relu and zero_point:  # no range of a ReLU's output, yet a checkpoint may say so
            x, relu = torch.relu(x), False
        if bank.learns:
            return bank.learned(self.index, x, relu=relu)
        watch = bank.watch(self.index, x, relu=relu) if bank.observing else None
        if self.changed or x._is_view():
            return fake_quantize(x, scale, zero_point, keep_input=self.changed, watch=watch)
        return fake_quantize_(x, scale, zero_point, watch=watch)

    def _is_off(self) -> bool:
        return self.bank.only is not None and self.index not in self.bank.only.places

    def _quantize(self, x: Tensor) -> Tensor:
        bank = self.bank
        known = bank.parameters_of[self.index]
        if not bank.rounds:
            return x
        if bank.stage == Stage.EXPORT:  # what training never reached stays in floating point
            if known is None:
                return x
            bank.written.add(self.index)
            return _quantize_dequantize(x, *known, signed=bank.signed)
        if bank.stage != Stage.ON or known is None or bank.waits(self.index) or self._is_off():
            if bank.observing:
                bank.observe(self.index, x)
            return x
        if bank.learns:
            return bank.learned(self.index, x)
        watch = bank.watch(self.index, x) if bank.observing else None
        return fake_quantize(x, *known, keep_input=self.changed, watch=watch)


class Site(NamedTuple):
    """What happens at one call.

    Attributes:
        inputs: quantizers by position.
        output: quantizer, if any.
        relu: the ReLU behind is computed here, together with the output's fake-quantization.
        done: the call is such a ReLU: it has nothing to do where the operation before has done it.
    """

    inputs: Mapping[int, Quantizer]
    output: Quantizer | None
    relu: bool = False
    done: bool = False


class Sites:
    """What happens at the calls of a model, found by their identity."""

    def __init__(self) -> None:
        self.names: dict[str, Site] = {}
        self._at: dict[Spot, dict[tuple[str, int], Site]] = {}

    def add(self, name: str, identity: Identity, site: Site) -> None:
        """Add a call, which is shown under ``name``."""
        self.names[name] = site
        self._at.setdefault(identity.spot, {})[identity.layer, identity.nth] = site

    def find(self, identity: Identity) -> Site | None:
        """Return what happens at a call; one that stands alone in its line is known by that."""
        known = self._at.get(identity.spot, {})
        if len(known) == 1:
            return next(iter(known.values()))
        return known.get((identity.layer, identity.nth))


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
