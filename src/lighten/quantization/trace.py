"""Where quantizers belong: read off one forward pass of the model.

Placement: at the input and at the output of every operation that integer runtimes compute. A layer takes its batch norm
and the ReLU after it along, an add takes its ReLU, because runtimes fuse them: inside such a chain nothing is rounded.
What leaves the network stays in floating point.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lighten.errors import UserError
from lighten.example import Call
from lighten.quantization.fold import is_foldable
from lighten.quantization.functions import ADD, CAT, KEEP, POOL, RELU, inputs_of, kind_of
from lighten.quantization.sites import CallSites

LAYER, NORM, OTHER = "layer", "norm", "other"


@dataclass(frozen=True)
class LayerPlace:
    """A layer's places: where its input was quantized, by itself or before; its output's; and the norm it folds."""

    input: str
    quantizes_input: bool
    output: str | None
    norm: str | None


@dataclass(frozen=True)
class CallPlace:
    """A function call's places, by input position and of its output; ``keeps`` if it moves codes unchanged."""

    inputs: Mapping[int, str]
    output: str | None
    keeps: bool = False


@dataclass
class Placement:
    """Places in order of use, layers by name, calls by name (``"layer1.0:add0"``), modules whose calls are watched."""

    places: list[str] = field(default_factory=list)
    layers: dict[str, LayerPlace] = field(default_factory=dict)
    calls: dict[str, CallPlace] = field(default_factory=dict)
    frames: set[str] = field(default_factory=set)

    def add(self, place: str) -> str:
        """Append a place and return its name."""
        self.places.append(place)
        return place


def place_quantizers(model: nn.Module, call: Call, layers: Collection[str]) -> Placement:
    """Run ``model`` once, in eval mode and without gradients, and return where its quantizers belong.

    Args:
        model: any module; its modes and the random state are left as found.
        call: arguments of its forward.
        layers: names of the modules to quantize; every other layer stays in floating point.

    Raises:
        UserError: if a layer is used twice in one pass, so that it has no one input range.
    """
    events = _Recorder(model, layers).run(call)
    placement = Placement()
    for event in events:
        if event.kind == LAYER:
            _place_layer(event, placement)
        elif event.kind in (ADD, POOL, CAT) and any(source and source.place for source in event.inputs):
            _place_call(event, placement)
        elif event.kind in (KEEP, RELU) and event.place is None and event.inputs[0] is not None:
            event.place = event.inputs[0].place
            if event.place and not event.is_last:
                placement.calls[event.name] = CallPlace({}, event.place, keeps=True)
    if placement.calls:
        placement.frames = {e.name.rpartition(":")[0] for e in events if e.kind in (RELU, ADD, POOL, CAT, KEEP)}
    return placement


@dataclass(eq=False)
class _Event:
    """One layer, norm or function call; ``inputs`` are the events that made its tensors, ``None`` for the model's."""

    kind: str
    name: str
    inputs: list["_Event | None"]
    users: list["_Event"] = field(default_factory=list)
    leaves: bool = False
    place: str | None = None
    channels_first: bool = True

    @property
    def is_last(self) -> bool:
        return self.leaves or not self.users

    def only_user(self, kind: str) -> "_Event | None":
        alone = len(self.users) == 1 and not self.leaves and self.users[0].kind == kind
        return self.users[0] if alone else None


def _place_layer(event: _Event, placement: Placement) -> None:
    if event.name in placement.layers:
        raise UserError(f"quantize: layer {event.name!r} runs twice in one forward pass, expected once; exclude it")
    source = event.inputs[0]
    given = source.place if source is not None else None
    input_place = given or placement.add(f"{event.name}.input")
    norm = event.only_user(NORM) if event.channels_first else None
    relu = (norm or event).only_user(RELU)
    end = relu or norm or event
    if not end.is_last:
        end.place = placement.add(f"{event.name}.output")
    if relu is not None and relu.place:
        placement.calls[relu.name] = CallPlace({}, relu.place)
    placement.layers[event.name] = LayerPlace(
        input_place, given is None, None if relu else end.place, norm.name if norm else None
    )


def _place_call(event: _Event, placement: Placement) -> None:
    relu = event.only_user(RELU) if event.kind == ADD else None
    end = relu or event
    if end.is_last:
        return
    inputs = {
        i: placement.add(f"{event.name}.input{i}")
        for i, source in enumerate(event.inputs)
        if source is None or source.place is None
    }
    end.place = placement.add(f"{event.name}.output")
    if relu is None:
        placement.calls[event.name] = CallPlace(inputs, end.place)
        return
    placement.calls[relu.name] = CallPlace({}, end.place)
    if inputs:
        placement.calls[event.name] = CallPlace(inputs, None)


class _Recorder(TorchFunctionMode):
    """Writes down what a forward pass does: layers, norms and function calls, and which of them feeds which."""

    def __init__(self, model: nn.Module, layers: Collection[str]) -> None:
        super().__init__()
        self._model, self._layers = model, layers
        self._sites = CallSites()
        self._events: list[_Event] = []
        self._made_by: dict[int, _Event] = {}
        self._alive: list[Tensor] = []  # so that no id is used twice

    def run(self, call: Call) -> list[_Event]:
        modes = {module: module.training for module in self._model.modules()}
        try:
            with torch.no_grad(), torch.random.fork_rng(), self._hooks(), self:
                self._model.eval()
                output = self._model(*call[0], **call[1])
        finally:
            for module, training in modes.items():
                module.training = training
        for leaf in tree_leaves(output):
            if id(leaf) in self._made_by:
                self._made_by[id(leaf)].leaves = True
        return self._events

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = kind_of(func, args, kwargs)
        name = self._sites.next(kind or OTHER)
        read = inputs_of(kind, args) if kind else [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        sources = [self._made_by.get(id(x)) for x in read]
        output = func(*args, **kwargs)
        made = [x for x in tree_leaves(output) if isinstance(x, Tensor)]
        if func is torch.Tensor.__setitem__:
            made = [args[0]]
        if name is not None and made:
            self._record(_Event(kind or OTHER, name, sources), made)
        return output

    def _record(self, event: _Event, made: list[Tensor]) -> None:
        for source in event.inputs:
            if source is not None:
                source.users.append(event)
        self._events.append(event)
        self._alive.extend(made)
        self._made_by.update((id(x), event) for x in made)

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        """Follow the modules: layers and norms are one event each, others lend their name to the calls inside."""
        with ExitStack() as hooks:
            for name, module in self._model.named_modules():
                kind = LAYER if name in self._layers else NORM if is_foldable(module) else None
                if kind is None and _is_leaf(module):
                    continue
                before = module.register_forward_pre_hook(partial(self._enter, name if kind is None else None))
                hooks.callback(before.remove)
                after = module.register_forward_hook(partial(self._leave, kind, name), with_kwargs=True)
                hooks.callback(after.remove)
            yield

    def _enter(self, name: str | None, module: nn.Module, args: Any) -> None:
        self._sites.push(name)

    def _leave(self, kind: str | None, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._sites.pop()
        if kind is not None:
            given = args[0] if args else next(iter(kwargs.values()))
            event = _Event(kind, name, [self._made_by.get(id(given))])
            event.channels_first = not isinstance(module, nn.Linear) or output.dim() == 2
            self._record(event, [output])


def _is_leaf(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.modules") and not any(module.children())
