"""Where quantizers belong: read off one forward pass of the model.

Placement: at the input and at the output of every operation that integer runtimes compute. A layer takes its batch norm
and the ReLU after it along, an add takes its ReLU, because runtimes fuse them: inside such a chain nothing is rounded.
A tensor that several operations read is quantized once. What leaves the network stays in floating point, and so does
what only floating-point operations read (layer norm, softmax, GELU): the sums of a transformer's residual stream, the
output of a linear layer before GELU. That is as fast, and more exact. A convolution's output is always quantized, as
LiteRT and XNNPACK compute it in integers only then.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lighten.example import Call
from lighten.quantization.fold import is_foldable
from lighten.quantization.functions import ADD, CAT, KEEP, POOL, RELU, RELUS, inputs_of, kind_of
from lighten.quantization.sites import CallSites

LAYER, TABLE, NORM, OTHER, GIVEN = "layer", "table", "norm", "other", "given"


@dataclass(frozen=True)
class LayerPlace:
    """A layer's places.

    Attributes:
        input: where its input is quantized.
        quantizes_input: by itself, as nothing before has done it.
        output: where its output is, or ``None``.
        norm: the norm that is folded into it.
        relu: the ReLU behind it is computed here.
        changed: its output is changed in place later.
    """

    input: str
    quantizes_input: bool
    output: str | None
    norm: str | None = None
    relu: bool = False
    changed: bool = False


@dataclass(frozen=True)
class CallPlace:
    """A function call's places, by input position and of its output.

    Attributes:
        inputs: places by position.
        output: place, or ``None`` where it is not quantized here.
        keeps: it moves codes unchanged.
        relu: the ReLU behind it is computed here.
        done: it is a ReLU that the operation before it computes.
        changed: its output is changed in place later.
    """

    inputs: Mapping[int, str]
    output: str | None
    keeps: bool = False
    relu: bool = False
    done: bool = False
    changed: bool = False


@dataclass
class Placement:
    """What belongs where.

    Attributes:
        places: names, in order of use.
        layers: by name.
        tables: names of embeddings.
        calls: function calls by name, ``"layer1.0:add0"``.
        frames: modules whose calls are watched.
        shared: places at which several operations quantize one and the same tensor.
        left: layers that stay in floating point, and why.
    """

    places: list[str] = field(default_factory=list)
    layers: dict[str, LayerPlace] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    calls: dict[str, CallPlace] = field(default_factory=dict)
    frames: set[str] = field(default_factory=set)
    shared: set[str] = field(default_factory=set)
    left: dict[str, str] = field(default_factory=dict)

    def add(self, place: str) -> str:
        """Append a place and return its name."""
        self.places.append(place)
        return place


def place_quantizers(model: nn.Module, call: Call, layers: Collection[str]) -> Placement:
    """Run ``model`` once, in eval mode and without gradients, and return where its quantizers belong.

    Args:
        model: any module; its modes and the random state are left as found.
        call: arguments of its forward.
        layers: names of the modules to quantize; every other layer stays in floating point, and so does one that runs
            twice in one pass, as it has no one input range, or never.
    """
    events = _Recorder(model, layers).run(call)
    placement = Placement()
    runs = Counter(event.name for event in events if event.kind == LAYER)
    for event in events:
        if runs[event.name] > 1:
            event.kind, placement.left[event.name] = OTHER, "runs more than once in a forward pass"
    reached = {*runs, *(event.name for event in events if event.kind == TABLE)}
    placement.left |= {name: "its forward is not called" for name in layers if name not in reached}
    for event in events:
        if event.kind == TABLE and event.name not in placement.tables:
            placement.tables.append(event.name)
        elif event.kind == LAYER:
            _place_layer(event, placement)
        elif event.kind in (ADD, POOL, CAT) and any(source.place for source in event.inputs):
            _place_call(event, placement)
        elif event.kind in (KEEP, *RELUS) and event.place is None:
            event.place = event.inputs[0].place
            if event.place and not event.is_last:
                placement.calls[event.name] = CallPlace({}, event.place, keeps=True)
    if placement.calls or placement.shared:
        watched = (*RELUS, ADD, POOL, CAT, KEEP)
        placement.frames = {e.name.rpartition(":")[0] for e in events if e.kind in watched} | {""}
    return placement


@dataclass(eq=False)
class _Event:
    """One layer, norm or function call, or a tensor that was there before; ``inputs`` made its tensors."""

    kind: str
    name: str
    inputs: list["_Event"]
    users: list["_Event"] = field(default_factory=list)
    leaves: bool = False
    channels_first: bool = True
    convolves: bool = False
    place: str | None = None
    """Where its output was quantized."""
    read_at: str | None = None
    """Where operations that read it quantize its output, which it leaves in floating point."""
    changed_by: list["_Event"] = field(default_factory=list)
    """Calls that change its output in place."""

    @property
    def is_last(self) -> bool:
        return self.leaves or not self.users

    def feeds_integers(self) -> bool:
        """Return whether anything that reads its output, however moved about, computes with integers."""
        passing = (ADD, POOL, CAT, KEEP, *RELUS)
        return any(u.kind == LAYER or (u.kind in passing and u.feeds_integers()) for u in self.users)

    def only_user(self, *kinds: str) -> "_Event | None":
        alone = len(self.users) == 1 and not self.leaves and self.users[0].kind in kinds
        return self.users[0] if alone else None


def _read(source: _Event, name: str, placement: Placement) -> tuple[str, bool]:
    """Return the place of what an operation reads, and whether it must quantize there by itself."""
    if source.place is not None:
        return source.place, False
    if source.read_at is None:
        source.read_at = placement.add(name)
    else:
        placement.shared.add(source.read_at)
    return source.read_at, True


def _place_layer(event: _Event, placement: Placement) -> None:
    input_place, quantizes = _read(event.inputs[0], f"{event.name}.input", placement)
    norm = event.only_user(NORM) if event.channels_first else None
    relu = (norm or event).only_user(*RELUS)
    end = relu or norm or event
    if not end.is_last and (event.convolves or end.feeds_integers()):
        end.place = placement.add(f"{event.name}.output")
    done = relu is not None and relu.kind == RELU and end.place is not None
    if relu is not None and relu.place:
        placement.calls[relu.name] = CallPlace({}, relu.place, done=done)
    placement.layers[event.name] = LayerPlace(
        input_place,
        quantizes,
        end.place if relu is None or done else None,
        norm=norm.name if norm else None,
        relu=done,
        changed=_is_changed(event, norm, relu),
    )


def _place_call(event: _Event, placement: Placement) -> None:
    relu = event.only_user(*RELUS) if event.kind == ADD else None
    end = relu or event
    if end.is_last or not end.feeds_integers():
        return
    read = [_read(source, f"{event.name}.input{i}", placement) for i, source in enumerate(event.inputs)]
    inputs = {i: place for i, (place, quantizes) in enumerate(read) if quantizes}
    end.place = placement.add(f"{event.name}.output")
    done = relu is not None and relu.kind == RELU
    if relu is not None:
        placement.calls[relu.name] = CallPlace({}, end.place, done=done)
    if relu is None or done or inputs:
        output = end.place if relu is None or done else None
        placement.calls[event.name] = CallPlace(inputs, output, relu=done, changed=_is_changed(event, relu))


def _is_changed(*chain: _Event | None) -> bool:
    """Return whether calls outside of a chain, which is computed as one, change its output in place."""
    return any(changer not in chain for event in chain if event is not None for changer in event.changed_by)


class _Recorder(TorchFunctionMode):
    """Writes down what a forward pass does: layers, norms and function calls, and which of them feeds which."""

    def __init__(self, model: nn.Module, layers: Collection[str]) -> None:
        super().__init__()
        self._model, self._layers = model, layers
        self._sites = CallSites()
        self._events: list[_Event] = []
        self._made_by: dict[int, _Event] = {}
        self._alive: list[Tensor] = []  # so that no id is used twice
        self._in_storage: dict[int, list[_Event]] = {}

    def run(self, call: Call) -> list[_Event]:
        modes = {module: module.training for module in self._model.modules()}
        try:
            uncompiled = torch.compiler.set_stance("force_eager")
            with torch.no_grad(), torch.random.fork_rng(), uncompiled, self._hooks(), self:
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
        sources = [self._source(x) for x in read]
        versions = [x._version for x in read]
        output = func(*args, **kwargs)
        made = [x for x in tree_leaves(output) if isinstance(x, Tensor)]
        if func is torch.Tensor.__setitem__:
            made = [args[0]]
        event = _Event(kind or OTHER, name or "", sources)
        for x, version in zip(read, versions, strict=True):
            if x._version != version:
                for earlier in self._in_storage.get(x.untyped_storage().data_ptr(), []):
                    earlier.changed_by.append(event)
        if name is not None and made:
            self._record(event, made)
        return output

    def _record(self, event: _Event, made: list[Tensor]) -> None:
        for x in made:
            self._in_storage.setdefault(x.untyped_storage().data_ptr(), []).append(event)
        for source in event.inputs:
            source.users.append(event)
        self._events.append(event)
        self._alive.extend(made)
        self._made_by.update((id(x), event) for x in made)

    def _source(self, x: Tensor) -> _Event:
        """Return what made ``x``; a tensor that was there before made itself."""
        if id(x) not in self._made_by:
            self._alive.append(x)
            self._made_by[id(x)] = _Event(GIVEN, "", [])
        return self._made_by[id(x)]

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        """Follow the modules: layers and norms are one event each, others lend their name to the calls inside."""
        with ExitStack() as hooks:
            for name, module in self._model.named_modules():
                kind = NORM if is_foldable(module) else None
                if name in self._layers:
                    kind = TABLE if isinstance(module, nn.Embedding) else LAYER
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
            event = _Event(kind, name, [self._source(given)])
            event.convolves = isinstance(module, _ConvNd)
            event.channels_first = event.convolves or output.dim() == 2
            self._record(event, [output])


def _is_leaf(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.modules") and not any(module.children())
