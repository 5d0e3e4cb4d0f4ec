"""Recorder of a forward pass: which layers, norms and functions run, and which of them feeds which."""

import gc
import weakref
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lighten.quantization.calls import Calls, Identity, forward_code
from lighten.quantization.fold import is_foldable
from lighten.quantization.functions import ADD, CAT, KEEP, POOL, RELUS, inputs_of, kind_of, positional
from lighten.utils.inputs import Call, leaves_of, map_tensors
from lighten.utils.preserve import preserved

LAYER, TABLE, NORM, OTHER, GIVEN = "layer", "table", "norm", "other", "given"
"""Kinds of events besides those of functions."""

WATCHED = (*RELUS, ADD, POOL, CAT, KEEP)
"""Kinds of functions that are quantized where they stand."""


@dataclass(eq=False)
class Event:
    """One layer, norm or function call, or a tensor that was there before; ``inputs`` made its tensors.

    Attributes:
        kind: of what ran.
        name: of a layer or norm; of a function as it is shown, ``"layer1.0:add0"``.
        inputs: the events whose tensors it reads.
        identity: of a function that is quantized where it stands.
        users: the events that read what it made.
        leaves: the network returns its tensor.
        kept: somebody keeps its tensor when the pass is over: an attribute, a hook, an object that is returned.
        channels_first: its output's channels are in dimension 1, or it has no other than the batch's.
        convolves: it is a convolution.
        changed_by: calls that change its output in place.
        trained: a forward in training mode reaches it.
        by: the module without submodules that called the function, an ``nn.ReLU`` say.
        location: where its output was quantized.
        read_at: where operations that read it quantize its output, which it leaves in floating point.
    """

    kind: str
    name: str
    inputs: list["Event"]
    identity: Identity | None = None
    users: list["Event"] = field(default_factory=list)
    leaves: bool = False
    kept: bool = False
    channels_first: bool = True
    convolves: bool = False
    changed_by: list["Event"] = field(default_factory=list)
    by: str = ""
    trained: bool = True
    location: str | None = None
    read_at: str | None = None

    @property
    def is_last(self) -> bool:
        """Whether nothing in the network reads its output, or something outside does."""
        return self.leaves or not self.users

    def feeds_integers(self) -> bool:
        """Return whether anything that reads its output, however moved about, computes with integers."""
        return any(u.kind == LAYER or (u.kind in WATCHED and u.feeds_integers()) for u in self.users)

    def only_user(self, *kinds: str) -> "Event | None":
        """Return what alone reads its output, if it is of one of these kinds."""
        alone = len(self.users) == 1 and not (self.leaves or self.kept) and self.users[0].kind in kinds
        return self.users[0] if alone else None


def record(model: nn.Module, call: Call, layers: Collection[str]) -> tuple[list[Event], dict[str, str]]:
    """Return what a forward of ``model`` does in eval mode, and which layers' weights are read elsewhere, and where.

    What a forward in training mode does besides counts too: that it reads or keeps a tensor, or changes it in place. A
    forward that cannot run in training mode as it does in eval mode, for want of labels say, is seen in eval mode only.

    Args:
        model: left as it is.
        call: arguments of its forward.
        layers: names of the modules that may be quantized.
    """
    events, read = _Recorder(model, layers).run(call, training=False)
    missing = set(events)
    for seed in range(PASSES):
        try:
            in_training, read_too = _Recorder(model, layers).run(call, training=True, seed=seed)
        except Exception:
            return events, read
        read = {**read_too, **read}
        missing -= _add_users(events, in_training)
        if not missing:
            break
    for event in missing:
        event.trained = False
    return events, read


PASSES = 4
"""In training mode at most: a block that is skipped at random runs in one of them."""


def origins_of(events: Sequence[Event], layers: Collection[str]) -> dict[Event, str]:
    """Return the layer that each event's operands come from, as :class:`Calls` finds it while ``layers`` say so."""
    order: dict[Event, tuple[int, str]] = {}

    def origin(event: Event) -> tuple[int, str]:
        if event not in order:
            order[event] = max((origin(source) for source in event.inputs), default=(0, ""))
        return order[event]

    found = {}
    for index, event in enumerate(events):
        found[event] = max((origin(source) for source in event.inputs), default=(0, ""))[1]
        if event.kind in (LAYER, TABLE) and event.name in layers:
            order[event] = index + 1, event.name
    return found


def identified(events: Sequence[Event], layers: Collection[str]) -> dict[Event, Identity]:
    """Return the identity of each call of a function while only ``layers`` say where tensors come from."""
    counts: dict[Any, int] = {}
    origins = origins_of(events, layers)
    found = {}
    for event in events:
        if event.identity is not None:
            key = event.identity.spot, origins[event]
            counts[key] = counts.get(key, -1) + 1
            found[event] = Identity(event.identity.spot, origins[event], counts[key])
    return found


def _add_users(events: Sequence[Event], in_training: Sequence[Event]) -> set[Event]:
    """Add to ``events`` what only a pass in training mode does to their tensors; return those that it reaches."""
    known = _by_identity(events)
    twins = {twin: known[key] for key, twin in _by_identity(in_training).items() if key in known}
    for twin, event in twins.items():
        event.leaves, event.kept = event.leaves or twin.leaves, event.kept or twin.kept
        new = [user for user in twin.users if user not in twins]
        event.leaves |= bool(new) and not event.users  # in eval mode nothing reads it: there is nothing to be one with
        event.users.extend(new)
        event.changed_by.extend(twins.get(changer, changer) for changer in twin.changed_by)
    return set(twins.values())


def _by_identity(events: Sequence[Event]) -> dict[Any, Event]:
    layers = {event.name for event in events if event.kind in (LAYER, TABLE)}
    calls, counts, found = identified(events, layers), dict[Any, int](), dict[Any, Event]()
    for event in events:
        if event.kind in (LAYER, TABLE, NORM):
            counts[event.name] = counts.get(event.name, -1) + 1
            found[event.name, counts[event.name]] = event
        elif event in calls:
            found[calls[event]] = event
    return found


class _Recorder(TorchFunctionMode):
    """Writes events down while a forward runs."""

    def __init__(self, model: nn.Module, layers: Collection[str]) -> None:
        super().__init__()
        self._model, self._layers = model, layers
        self._calls, self._shown = Calls(), dict[str, int]()
        self._running: list[str] = []
        self._leaf = ""
        self._events: list[Event] = []
        self._made_by: dict[int, tuple[weakref.ref[Tensor], Event]] = {}
        self._in_storage: dict[int, tuple[Any, list[Event]]] = {}  # storages are kept, so that none is used twice
        self._owners: dict[int, set[str]] = {}
        for name in layers:
            self._owners.setdefault(id(model.get_submodule(name).weight), set()).add(name)
        self._read: dict[str, str] = {}

    def run(self, call: Call, *, training: bool, seed: int = 0) -> tuple[list[Event], dict[str, str]]:
        args, kwargs = map_tensors(torch.Tensor.clone, call)  # a forward may write into its arguments
        with preserved(self._model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            torch.manual_seed(seed)
            set_mode(self._model, training)
            with self._hooks(), self:
                output = self._model(*args, **kwargs)
            self._note_kept(output)
        return self._events, self._read

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = positional(func, args, kwargs or {})
        kind = kind_of(func, args, kwargs)
        identity = self._calls.identify(kind, ()) if kind else None
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        sources, versions = [self._source(x) for x in read], [x._version for x in read]
        output = func(*args, **kwargs)
        made = [x for x in tree_leaves(output) if isinstance(x, Tensor)]
        if func is torch.Tensor.__setitem__:
            made = [args[0]]
        if identity is not None and kind is not None:
            operands = [self._source(x) for x in inputs_of(kind, args)]
            event = Event(kind, self._name(identity), operands, identity, by=self._leaf)
        else:
            event = Event(OTHER, "", sources)
        for x, version in zip(read, versions, strict=True):
            if x._version != version:
                for earlier in self._in_storage.get(x.untyped_storage().data_ptr(), (None, []))[1]:
                    earlier.changed_by.append(event)
        if made:
            self._note_weights(read)
            if not self._running:
                self._record(event, made)
        return output

    def _name(self, identity: Identity) -> str:
        """Return under which name a call is shown: the first add of a module, the second one."""
        kind = f"{identity.spot.module}:{identity.spot.kind}"
        self._shown[kind] = self._shown.get(kind, -1) + 1
        return f"{kind}{self._shown[kind]}"

    def _record(self, event: Event, made: list[Tensor]) -> None:
        for x in made:
            storage = x.untyped_storage()
            self._in_storage.setdefault(storage.data_ptr(), (storage, []))[1].append(event)
            self._made_by[id(x)] = weakref.ref(x), event
        for source in event.inputs:
            source.users.append(event)
        self._events.append(event)

    def _source(self, x: Tensor) -> Event:
        """Return what made ``x``; a tensor that was there before made itself."""
        known = self._made_by.get(id(x))
        if known is None or known[0]() is not x:
            known = self._made_by[id(x)] = weakref.ref(x), Event(GIVEN, "", [])
        return known[1]

    def _note_weights(self, read: Sequence[Tensor]) -> None:
        """Note where a layer's weight is read by something else than the layer."""
        for x in read:
            owners = self._owners.get(id(x))
            if owners and not owners & set(self._running):
                where = self._running[-1] if self._running else self._calls.module or type(self._model).__name__
                self._read.update(dict.fromkeys(owners, f"its weight is read elsewhere too, in {where}"))

    def _note_kept(self, output: Any) -> None:
        """Note which tensors are still there after the pass: what the network returns, and what anybody keeps.

        An object that is returned keeps its tensors too, whatever it is.
        """
        for x in leaves_of(output):
            if id(x) in self._made_by:
                self._made_by[id(x)][1].leaves = True
        if any(not event.leaves for event in self._alive()):
            gc.collect()  # what hangs together in a circle is kept by nobody
        for event in self._alive():
            event.kept = True

    def _alive(self) -> list[Event]:
        """Return the events whose tensors are still there, and not just as the base of a view that is."""
        alive = [(x, event) for ref, event in self._made_by.values() if (x := ref()) is not None]
        bases = {id(x._base) for x, _ in alive if x._is_view()}
        return [event for x, event in alive if id(x) not in bases and event.kind != GIVEN]

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        """Follow the modules: layers and norms are one event each, others lend their name to the calls inside."""
        with ExitStack() as hooks:
            for name, module in self._model.named_modules():
                kind = NORM if is_foldable(module) else None
                if name in self._layers:
                    kind = TABLE if isinstance(module, nn.Embedding) else LAYER
                before = module.register_forward_pre_hook(partial(self._enter, kind, name))
                hooks.callback(before.remove)
                after = module.register_forward_hook(partial(self._leave, kind, name), with_kwargs=True, prepend=True)
                hooks.callback(after.remove)
            yield

    def _enter(self, kind: str | None, name: str, module: nn.Module, args: Any) -> None:
        if kind is not None:
            self._running.append(name)
        elif is_frame(module):
            self._calls.push(name, forward_code(type(module)))
        else:
            self._leaf = name

    def _leave(self, kind: str | None, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if kind is not None:
            self._running.pop()
            given = args[0] if args else next(iter(kwargs.values()))
            event = Event(kind, name, [self._source(given)])
            event.convolves = isinstance(module, _ConvNd)
            event.channels_first = event.convolves or output.dim() == 2
            self._record(event, [output])
        elif is_frame(module):
            self._calls.pop()
        else:
            self._leaf = ""


def is_frame(module: nn.Module) -> bool:
    """Return whether ``module`` has a forward of somebody's own, whose calls of functions are looked at."""
    own = "forward" not in module.__dict__  # a forward set on the instance is reached by no class
    return own and (not type(module).__module__.startswith("torch.nn.modules") or any(module.children()))


def set_mode(model: nn.Module, training: bool) -> None:
    """Set the mode of ``model``; norms that synchronise their statistics use the running ones in any case."""
    model.train(training)
    for norm in model.modules():
        if isinstance(norm, nn.SyncBatchNorm):
            norm.eval()  # in training it waits for other ranks, and this one may be alone here
