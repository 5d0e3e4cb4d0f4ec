"""Activation quantizers of a model: their ranges, their stage and what they observed."""

import enum
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lighten.errors import UserError
from lighten.quantization.calls import Calls, CallTable
from lighten.quantization.fake_quant import Watch, fake_quantize_learned, quantization_parameters
from lighten.quantization.lsq import learn_
from lighten.quantization.observe import Observer, rule_of


class Stage(enum.IntEnum):
    """How far a model is on its way to integers."""

    OFF = 0
    """Plain float; the model computes what it did before."""
    OBSERVE = 1
    """Batch norm folded, weights fake-quantized, activations watched but not quantized."""
    ON = 2
    """Everything fake-quantized."""
    EXPORT = 3
    """Quantize and dequantize are emitted as operators of the graph."""


@dataclass(frozen=True)
class QuantizedSubset:
    """What alone is fake-quantized, while the rest computes in floating point: indices of locations, and layers."""

    locations: frozenset[int]
    layers: frozenset[nn.Module]


QUANTIZERS = "activation_ranges"
"""Name under which the quantizers are registered at a model's root, and so in state dicts."""


class ActivationQuantizers(nn.Module):
    """Ranges of every quantized activation of a model, and the stage that the model is in.

    It sits at the model's root, so that one tensor holds all ranges: one reduction over ranks, one update, one
    synchronisation a step, however many locations there are.

    What it holds is in the model's state dict, as tensors ``low``, ``high`` and ``settled`` (locations,), which says
    whether a location was seen with all before it, ``stage_code`` and ``format`` (), and ``moments`` (3, locations) of
    learned ranges. They are no buffers, so that nobody averages, swaps or broadcasts them with the weights, and the
    model's own buffers keep their order.

    Args:
        names: of the locations, in order of use.
        ranges: a name from ``observe.RULES``.
        weight_bits: of the layers.
    """

    def __init__(self, names: Sequence[str], ranges: str, weight_bits: int = 8) -> None:
        super().__init__()
        self.names, self.weight_bits = list(names), weight_bits
        self.observing, self.signed, self.rounds, self.held = False, False, True, False
        self.weights_alone = False
        self.placement: Any = None
        self.calls, self.functions = Calls(), CallTable()
        self.left: dict[str, str] = {}
        self.untrained: set[str] = set()
        self.written: set[int] = set()
        self.shared: dict[int, tuple[Tensor, Tensor]] = {}
        self.subset: QuantizedSubset | None = None
        self.rule = rule_of(ranges)
        self.low, self.high = torch.full((len(names),), torch.nan), torch.full((len(names),), torch.nan)
        self.moments = torch.zeros(3, len(names)) if self.rule.learned else None
        self.settled = torch.zeros(len(names), dtype=torch.bool)
        self._stage = Stage.OFF
        self.observer = Observer(self.names)
        self.refresh()

    def reset_parameters(self) -> None:
        """Forget everything: what a model from the meta device asks of its modules once they have memory."""
        if self.moments is not None:
            self.moments.zero_()
        self._stage = Stage.OFF
        self.forget_ranges()

    def forward(self, x: Any) -> Any:
        """Return ``x``: at the root of an ``nn.Sequential`` this module is called as its last entry."""
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
        """Read the parameters of all locations from their ranges; runs after these were loaded or updated."""
        bounds = zip(self.names, self.low.tolist(), self.high.tolist(), strict=True)
        self.parameters_of = [_parameters(name, low, high) if low == low else None for name, low, high in bounds]
        self._settled = self.settled.tolist()

    def waits(self, index: int) -> bool:
        """Return whether a location is only watched: its range is unknown, or of steps that had skipped one before."""
        return self.parameters_of[index] is None or (self.observing and not self._settled[index])

    def follow(self, other: "ActivationQuantizers") -> None:
        """Take over stage and ranges of ``other``, of a model of which this is a copy."""
        self._stage = other._stage
        for name, tensor in other.tensors().items():
            self.tensors()[name].copy_(tensor)
        self.refresh()

    def tensors(self) -> dict[str, Tensor]:
        """Return what is known of the locations, by name."""
        moments = {} if self.moments is None else {"moments": self.moments}
        return {"low": self.low, "high": self.high, "settled": self.settled, **moments}

    def restart(self, ranges: str | None = None) -> None:
        """Forget all ranges and begin to observe; ``ranges`` may name another rule."""
        if ranges is not None:
            self.rule = replace(rule_of(ranges), learned=False)
        self.forget_ranges()
        self.observer.forget()
        self.stage, self.observing = Stage.OBSERVE, True

    def forget_ranges(self) -> None:
        """Let activations stay in floating point."""
        self.low.fill_(torch.nan)
        self.high.fill_(torch.nan)
        self.settled.zero_()
        self.refresh()

    def observe(self, index: int, x: Tensor, *, relu: bool = False) -> None:
        """Remember what ``x``, or its ReLU, is like at location ``index`` until the next ``update``."""
        counts = self.rule.estimate is not None and not self.learns
        self.observer.observe(index, x, relu=relu, with_histogram=counts)

    def watch(self, index: int, x: Tensor, *, relu: bool = False) -> Watch | None:
        """Do as ``observe``, or return how the kernel that will round ``x`` can do it."""
        watch = self.observer.watch(index, x, relu=relu) if self.rule.estimate is None else None
        if watch is None:
            self.observe(index, x, relu=relu)
        return watch

    def learned(self, index: int, x: Tensor, *, relu: bool = False) -> Tensor:
        """Fake-quantize ``x``, or its ReLU, such that its step size learns in the backward pass."""
        self.observe(index, x, relu=relu)
        known = self.parameters_of[index]
        assert known is not None
        return fake_quantize_learned(x, *known, self.observer.gradient_of(index, self.low), relu=relu)

    def forget_batch(self) -> None:
        """Drop what was observed since the last update: of a step that is passed over."""
        self.observer.forget()
        self.observing = False

    def update(self, when: str = "") -> None:
        """Fold what was observed since the last call into the ranges, over all ranks alike.

        A step may skip a block: a location that was not reached keeps its range, and those behind it may only grow
        wider, as they see less than they will in evaluation. Until a step has skipped nothing before them, they are
        watched alone.

        Args:
            when: named where something was not finite, such as ``" at step 3"``.

        Raises:
            UserError: if activations were not finite.
        """
        low, high, whole = self._reduced_extremes(when)
        reached = high > -torch.inf
        if self.learns:
            assert self.moments is not None
            reached &= self.low.isnan()  # a location that is reached for the first time begins with its extremes
            self.settled |= reached
            learn_(self.low, self.high, self.moments, self.observer.reduced_gradient(self.low))
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
        """Return the extremes seen, over all ranks, and where a rank had skipped no location before.

        Extremes are infinite the wrong way round where nothing was.
        """
        if not self.names:
            return self.low, self.high, self.settled
        extremes = self.observer.reduced_extremes(self.untrained, when, self.low.device)
        return -extremes[:, 0], extremes[:, 1], (extremes[:, 2] == 0) & (extremes[:, 1] > -torch.inf)

    def _estimates(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the rule makes of the histograms seen, over all ranks."""
        assert self.rule.estimate is not None
        reduced = self.observer.reduced_histograms(low, high)
        pairs = [self.rule.estimate(h) if h is not None else (math.inf, -math.inf) for h in reduced]
        estimates = self.low.new_tensor(pairs)
        return estimates[:, 0], estimates[:, 1]

    def input_scale(self, index: int) -> float | None:
        """Return the scale at location ``index``, or ``None`` while its range is unknown."""
        parameters = self.parameters_of[index]
        return parameters[0] if parameters else None

    def unknown(self) -> list[str]:
        """Return the locations that nothing has reached yet."""
        return [name for name, known in zip(self.names, self.parameters_of, strict=True) if known is None]

    def unwritten(self) -> list[str]:
        """Return the locations with a range that the graph, once traced, has no operators for."""
        known = enumerate(zip(self.names, self.parameters_of, strict=True))
        return [name for i, (name, parameters) in known if parameters is not None and i not in self.written]

    @property
    def stage_code(self) -> Tensor:
        """The stage as the state dict has it."""
        return torch.tensor(int(self._stage), dtype=torch.uint8)

    @property
    def format(self) -> Tensor:
        """A number that stands for what ranges mean: the locations and the bits of weights."""
        text = json.dumps([self.names, self.weight_bits])
        return torch.tensor(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))

    def _apply(self, fn: Any, recurse: bool = True) -> "ActivationQuantizers":
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


def quantizers_of(model: nn.Module) -> ActivationQuantizers:
    """Return the activation quantizers of a quantized model."""
    quantizers = getattr(model, QUANTIZERS, None)
    if not isinstance(quantizers, ActivationQuantizers):
        raise UserError(f"{type(model).__name__} has no fake-quantizers; call quantize_ on it first")
    return quantizers


def quantizers_in(model: nn.Module) -> list[ActivationQuantizers]:
    """Return those in ``model``, and those that its layers belong to where it is a part of a quantized model."""
    held = [m if isinstance(m, ActivationQuantizers) else vars(m).get("activation_quantizers") for m in model.modules()]
    return list({id(each): each for each in held if isinstance(each, ActivationQuantizers)}.values())


def _parameters(name: str, low: float, high: float) -> tuple[float, int]:
    try:
        return quantization_parameters(low, high)
    except ValueError as error:
        raise UserError(
            f"quantize: activations at {name!r} are not finite ({error}); lower the learning rate"
        ) from error
