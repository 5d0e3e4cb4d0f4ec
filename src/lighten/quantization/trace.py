"""Placement of quantizers, read off one forward of the model.

Placement: at the input and at the output of every operation that integer runtimes compute. A layer takes its batch norm
and the ReLU after it along, an add takes its ReLU, because runtimes fuse them: inside such a chain nothing is rounded.
A tensor that several operations read is quantized once. What leaves the network stays in floating point, and so does
what only floating-point operations read (layer norm, softmax, GELU): the sums of a transformer's residual stream, the
output of a linear layer before GELU. That is as fast, and more exact. A convolution's output is always quantized, as
LiteRT and XNNPACK compute it in integers only then.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import nn

from lighten.quantization.calls import Identity
from lighten.quantization.functions import ADD, CAT, KEEP, POOL, RELU, RELUS
from lighten.quantization.record import LAYER, NORM, OTHER, TABLE, WATCHED, Event, identified, record
from lighten.utils.inputs import Call


@dataclass(frozen=True)
class LayerLocations:
    """A layer's locations.

    Attributes:
        input: where its input is quantized.
        quantizes_input: by itself, as nothing before has done it.
        output: where its output is, or ``None``.
        norm: the norm that is folded into it.
        relu: the ReLU behind it is computed here.
        relu_module: the module that computes that ReLU, if one does.
        changed: its output is changed in place later.
    """

    input: str
    quantizes_input: bool
    output: str | None
    norm: str | None = None
    relu: bool = False
    relu_module: str = ""
    changed: bool = False


@dataclass(frozen=True)
class CallLocations:
    """A function call's locations, by input position and of its output.

    Attributes:
        inputs: locations by position.
        output: location, or ``None`` where it is not quantized here.
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
        locations: names, in order of use.
        layers: by name.
        tables: names of embeddings.
        calls: function calls by name, ``"layer1.0:add0"``.
        identities: of the function calls.
        frames: modules whose calls are watched.
        untrained: locations that no forward in training mode reaches.
        shared: locations at which several operations quantize one and the same tensor.
        left: layers that stay in floating point, and why.
    """

    locations: list[str] = field(default_factory=list)
    layers: dict[str, LayerLocations] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    calls: dict[str, CallLocations] = field(default_factory=dict)
    identities: dict[str, Identity] = field(default_factory=dict)
    frames: set[str] = field(default_factory=set)
    untrained: set[str] = field(default_factory=set)
    shared: set[str] = field(default_factory=set)
    left: dict[str, str] = field(default_factory=dict)

    def add(self, event: Event, end: str) -> str:
        """Append a location, at one end of an operation, and return its name."""
        location = f"{event.name}.{end}"
        self.locations.append(location)
        if not event.trained:
            self.untrained.add(location)
        return location


def place_quantizers(
    model: nn.Module, call: Call, layers: Collection[str], unwatched: Collection[str] = ()
) -> Placement:
    """Look at one forward of ``model`` in eval and in training mode, and return where its quantizers belong.

    Args:
        model: any module; left as it is.
        call: arguments of its forward.
        layers: names of the modules to quantize; every other layer stays in floating point, and so does one that runs
            twice in one pass, as it has no one input range, one whose weight is read elsewhere, or one that never runs.
        unwatched: names of modules whose own calls of functions stay in floating point.
    """
    events, read = record(model, call, layers)
    placement = Placement(left=dict(read))
    runs = Counter(event.name for event in events if event.kind in (LAYER, NORM))
    for event in events:
        if event.kind == LAYER and runs[event.name] > 1:
            placement.left[event.name] = "runs more than once in a forward pass"
        if (
            (event.kind == NORM and runs[event.name] > 1)
            or event.name in placement.left
            or (event.kind in WATCHED and event.name.rpartition(":")[0] in unwatched)
        ):
            event.kind = OTHER
    reached = {event.name for event in events if event.kind in (LAYER, TABLE)}
    placement.left |= {
        name: "its forward is not called" for name in layers if name not in reached and name not in placement.left
    }
    for event in events:
        if event.kind == TABLE and event.name not in placement.tables:
            placement.tables.append(event.name)
        elif event.kind == LAYER:
            _place_layer(event, placement)
        elif event.kind in (ADD, POOL, CAT) and any(source.location for source in event.inputs):
            _place_call(event, placement)
        elif event.kind in (KEEP, *RELUS) and event.location is None:
            event.location = event.inputs[0].location
            if event.location and not event.is_last:
                placement.calls[event.name] = CallLocations({}, event.location, keeps=True)
    identities = identified(events, {*placement.layers, *placement.tables})
    placement.identities = {e.name: identity for e, identity in identities.items() if e.name in placement.calls}
    placement.frames = {e.name.rpartition(":")[0] for e in events if e.name in placement.calls} | {""}
    return placement


def _read(source: Event, event: Event, end: str, placement: Placement) -> tuple[str, bool]:
    """Return the location of what an operation reads, and whether it must quantize there by itself."""
    if source.location is not None:
        return source.location, False
    if source.read_at is None:
        source.read_at = placement.add(event, end)
    else:
        placement.shared.add(source.read_at)
    return source.read_at, True


def _place_layer(event: Event, placement: Placement) -> None:
    input_location, quantizes = _read(event.inputs[0], event, "input", placement)
    norm = event.only_user(NORM) if event.channels_first else None
    relu = (norm or event).only_user(*RELUS)
    end = relu or norm or event
    if not end.is_last and (event.convolves or end.feeds_integers()):
        end.location = placement.add(event, "output")
    done = relu is not None and relu.kind == RELU and end.location is not None
    if relu is not None and relu.location:
        placement.calls[relu.name] = CallLocations({}, relu.location, done=done)
    placement.layers[event.name] = LayerLocations(
        input_location,
        quantizes,
        end.location if relu is None or done else None,
        norm=norm.name if norm else None,
        relu=done,
        relu_module=relu.by if relu is not None and done else "",
        changed=_is_changed(event, norm, relu),
    )


def _place_call(event: Event, placement: Placement) -> None:
    relu = event.only_user(*RELUS) if event.kind == ADD else None
    end = relu or event
    if end.is_last or not end.feeds_integers():
        return
    read = [_read(source, event, f"input{i}", placement) for i, source in enumerate(event.inputs)]
    inputs = {i: location for i, (location, quantizes) in enumerate(read) if quantizes}
    end.location = placement.add(event, "output")
    done = relu is not None and relu.kind == RELU
    if relu is not None:
        placement.calls[relu.name] = CallLocations({}, end.location, done=done)
    if relu is None or done or inputs:
        output = end.location if relu is None or done else None
        placement.calls[event.name] = CallLocations(inputs, output, relu=done, changed=_is_changed(event, relu))


def _is_changed(*chain: Event | None) -> bool:
    """Return whether calls outside of a chain, which is computed as one, change its output in place."""
    return any(changer not in chain for event in chain if event is not None for changer in event.changed_by)
