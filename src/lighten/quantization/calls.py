"""Identity of a function call: where it stands in the code and what it computes on, never its order alone.

A forward may call more functions in training than in evaluation, skip a block at random, or call one helper from
several places. So a call is known by the module whose forward is running, the line of code, and the layer that its
operands come from. Only calls that are equal in all of that, such as those of a loop without layers, are known by their
order.
"""

import sys
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

LIBRARY, LAYERS = str(Path(torch.__file__).parent), str(Path(nn.__file__).parent)
UNSEEN = (str(Path(nn.__file__).parent / "modules" / "module.py"), str(Path(__file__).parent))
"""Where forwards are called from in several ways, as hooks, modes and tracers demand: no part of a call's identity.

Nor is the rest of PyTorch, except for its layers and functions.
"""


class Spot(NamedTuple):
    """Where a call stands: the running module's name, the kind of function, and the lines from there to the call."""

    module: str
    kind: str
    lines: tuple[tuple[str, int], ...]


class Identity(NamedTuple):
    """One call: its spot, the layer that its operands come from (``""`` for none), and which of equal ones it is."""

    spot: Spot
    layer: str
    nth: int


@dataclass(frozen=True)
class Origin:
    """What is known of a tensor.

    Attributes:
        order: of the layer in this pass.
        layer: the last layer that it was computed from.
        norm: the norm that this layer has computed too, while nothing but that norm has read it.
        rectified: the layer or sum before has computed the ReLU behind it too.
    """

    order: int
    layer: str
    norm: nn.Module | None = None
    rectified: bool = False


class Calls:
    """The modules whose forward is running, and where the tensors of this pass come from."""

    def __init__(self) -> None:
        self._frames: list[tuple[str | None, CodeType | None]] = []
        self._counts: dict[tuple[Spot, str], int] = {}
        self._origins: dict[int, tuple[weakref.ref[Tensor], Origin]] = {}
        self._layers = 0

    def __bool__(self) -> bool:
        """Whether a watched forward is running."""
        return bool(self._frames)

    def __deepcopy__(self, memo: Any) -> "Calls":
        """Return one that knows nothing: what it knows is of one pass of one model."""
        return Calls()

    def __reduce__(self) -> tuple[type["Calls"], tuple[()]]:
        return Calls, ()

    def push(self, module: str | None, code: CodeType | None = None) -> None:
        """Make ``module``, whose forward has this ``code``, the innermost one; ``None``: its calls do not matter."""
        self._frames.append((module, code))

    def pop(self) -> None:
        """Leave the innermost module; with the outermost one a pass is over."""
        self._frames.pop()
        if not self._frames:
            self._counts.clear()

    @property
    def module(self) -> str | None:
        """Name of the innermost module, or ``None``."""
        return self._frames[-1][0] if self._frames else None

    def identify(self, kind: str, operands: Iterable[Any]) -> Identity | None:
        """Return which call of this kind on ``operands`` is running, or ``None`` where nobody watches."""
        module, code = self._frames[-1] if self._frames else (None, None)
        if module is None:
            return None
        spot, layer = Spot(module, kind, _lines(code)), self.latest(operands).layer
        count = self._counts[spot, layer] = self._counts.get((spot, layer), -1) + 1
        return Identity(spot, layer, count)

    def enter(self, x: Any, layer: str, *, norm: nn.Module | None = None, rectified: bool = False) -> None:
        """Note that ``layer`` has computed ``x``, together with its norm or its ReLU."""
        self._layers += 1
        self._note(x, Origin(self._layers, layer, norm, rectified))

    def follow(self, x: Any, operands: Iterable[Any], *, rectified: bool = False) -> None:
        """Note that ``x``, a tensor or several, was computed from ``operands``."""
        latest = self.latest(operands)
        if latest.order or rectified:
            for made in x if isinstance(x, list | tuple) else (x,):
                self._note(made, Origin(latest.order, latest.layer, rectified=rectified))

    def origin(self, x: Any) -> Origin:
        """Return what is known of ``x``."""
        known = self._origins.get(id(x))
        return known[1] if known is not None and known[0]() is x else NOTHING

    def latest(self, operands: Iterable[Any]) -> Origin:
        """Return the origin whose layer ran last."""
        return max((self.origin(x) for x in operands), key=lambda origin: origin.order, default=NOTHING)

    def _note(self, x: Any, origin: Origin) -> None:
        if isinstance(x, Tensor):
            key, origins = id(x), self._origins
            origins[key] = weakref.ref(x, lambda gone: _forget(origins, key, gone)), origin


class CallTable:
    """Values of calls, found by their identity.

    Attributes:
        names: the values by the names under which calls are shown.
    """

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}
        self._at: dict[Spot, dict[tuple[str, int], Any]] = {}

    def add(self, name: str, identity: Identity, value: Any) -> None:
        """Add the value of a call, which is shown under ``name``."""
        self.names[name] = value
        self._at.setdefault(identity.spot, {})[identity.layer, identity.nth] = value

    def find(self, identity: Identity) -> Any:
        """Return the value of a call, or ``None``; a call that stands alone in its line is known by that."""
        known = self._at.get(identity.spot, {})
        if len(known) == 1:
            return next(iter(known.values()))
        return known.get((identity.layer, identity.nth))


NOTHING = Origin(0, "")
"""Of a tensor that comes from no layer."""


def tensors_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors that a function was given, also those in lists."""
    found = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(item for item in value if isinstance(item, Tensor))
    return found


def forward_code(kind: type[nn.Module]) -> CodeType | None:
    """Return the code of a class's forward, a decorator's where it has one."""
    return getattr(getattr(kind, "forward", None), "__code__", None)


def _forget(origins: dict[int, Any], key: int, gone: Any) -> None:
    known = origins.get(key)
    if known is not None and known[0] is gone:
        del origins[key]


def _lines(outermost: CodeType | None) -> tuple[tuple[str, int], ...]:
    """Return the instructions that lead from the forward with this code to the function that was called."""
    lines: list[tuple[str, int]] = []
    frame: Any = sys._getframe(1) if outermost is not None else None
    while frame is not None:
        code = frame.f_code
        if _is_seen(code.co_filename):
            lines.append((code.co_qualname, frame.f_lasti))
        if code is outermost:
            return tuple(lines)
        frame = frame.f_back
    return ()  # no forward in Python, or one that is not running: order has to do


@cache
def _is_seen(file: str) -> bool:
    return not file.startswith(UNSEEN) and (file.startswith(LAYERS) or not file.startswith(LIBRARY))
