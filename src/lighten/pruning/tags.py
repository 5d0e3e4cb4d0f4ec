"""Tags on the integers that a forward reads from attributes and shapes, to see where it uses them as sizes."""

import copy
import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.traceback import annotate
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

KEY = "lighten_call"
"""Key of a node's custom metadata: the number of the call that made it."""
LIBRARIES = ("torch", "lightning", "builtins")
"""Packages whose objects are not looked into; their modules restate their own widths."""
OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "floordiv": operator.floordiv,
}  # fmt: skip
SIGNS = {"add": "+", "sub": "-", "mul": "*", "floordiv": "//"}


@dataclass(frozen=True)
class Formula:
    """How a forward computes a size: an attribute, a size of another tensor, or an operation on formulas and numbers.

    An attribute goes by its name; a size is ``@call.output:dimension``, of what a numbered call has put out.
    """

    operation: str
    parts: tuple["Formula | int", ...] = ()

    def __str__(self) -> str:
        if self.parts:
            return f" {SIGNS[self.operation]} ".join(str(part) for part in self.parts)
        return "a size" if self.operation.startswith("@") else self.operation

    @property
    def names(self) -> frozenset[str]:
        """The attributes and sizes that it is computed from."""
        if not self.parts:
            return frozenset([self.operation])
        return frozenset().union(*(part.names for part in self.parts if isinstance(part, Formula)))

    @property
    def of_attributes(self) -> bool:
        """Whether it is computed from an attribute."""
        return any(not name.startswith("@") for name in self.names)

    def value(self, of: Mapping[str, int]) -> int | None:
        """Return what it gives for these values; None where it divides by zero."""
        if not self.parts:
            return of[self.operation]
        values = [part.value(of) if isinstance(part, Formula) else part for part in self.parts]
        if None in values or (self.operation == "floordiv" and values[1] == 0):
            return None
        return OPERATIONS[self.operation](*values)  # type: ignore[arg-type]


class Tagged(int):
    """An integer that knows the formula it comes from. What is computed with it is tagged too."""

    formula: Formula

    @classmethod
    def of(cls, value: int, formula: Formula) -> "Tagged":
        """Return ``value`` with its origin."""
        tagged = cls(value)
        tagged.formula = formula
        return tagged

    def __neg__(self) -> "Tagged":
        return Tagged.of(-int(self), Formula("sub", (0, self.formula)))

    def __eq__(self, other: object) -> bool:
        same = int.__eq__(self, other)  # NotImplemented for a tensor or a float, which answers for itself
        if same is True and isinstance(other, Tagged):
            EQUAL.append((self.formula, other.formula))
        return same

    def __ne__(self, other: object) -> bool:
        same = self.__eq__(other)
        return same if same is NotImplemented else not same

    __hash__ = int.__hash__


EQUAL: list[tuple[Formula, Formula]] = []
"""Formulas that a forward has found equal while it was traced: what it asks for, it will ask for again."""


def _tagging(name: str, operation: str, *, swapped: bool) -> Callable[[Tagged, Any], Any]:
    plain = getattr(int, name)

    def method(self: Tagged, other: Any) -> Any:
        value = plain(self, other)
        if type(value) is not int:  # another type answers for itself
            return value
        parts = (self.formula, other.formula if isinstance(other, Tagged) else int(other))
        return Tagged.of(value, Formula(operation, parts[::-1] if swapped else parts))

    return method


for _operation in OPERATIONS:
    for _prefix in ("", "r"):
        _name = f"__{_prefix}{_operation}__"
        setattr(Tagged, _name, _tagging(_name, _operation, swapped=bool(_prefix)))


@dataclass(frozen=True)
class Read:
    """One size that an operator was given from attributes.

    ``kind`` says what of: ``size`` of dimension ``index`` of what it puts out; ``part``, the size along the operator's
    dimension of the output ``index`` of several; ``bound`` of a slice; number of ``groups``.
    """

    formula: Formula
    value: int
    kind: str
    index: int = 0


class Reads(TorchFunctionMode):
    """Numbers the calls of a traced forward, tags the sizes of what they put out, and notes which sizes they are given.

    The graph's nodes hold the number of their call as custom metadata.

    Attributes:
        values: of all attributes, as they are.
        shapes: of calls whose sizes were asked for, by number and output.
        equal: formulas that the forward has compared, and found equal.
        failure: why the forward could not be traced with tags, and was traced without; empty where it could.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, int] = {}
        self.shapes: dict[tuple[int, int], torch.Size] = {}
        self.equal: list[tuple[Formula, Formula]] = []
        self.failure = ""
        self._given: list[list[Read]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        given = [
            Read(value.formula, int(value), kind, index)
            for kind, index, value in SIZES.get(name, _no_sizes)(args, kwargs)
            if isinstance(value, Tagged)
        ]
        args, kwargs = tree_map(_plain, (args, kwargs))
        if func == GET_SHAPE or func == Tensor.size:
            return self._sizes(args[0], func(*args, **kwargs), *args[1:], **kwargs)
        number = len(self._given)
        self._given.append(given)
        with annotate({KEY: number}):
            result = func(*args, **kwargs)
        for at, value in enumerate(result if isinstance(result, list | tuple) else (result,)):
            if isinstance(value, Tensor):
                value.lighten_made = number, at  # type: ignore[attr-defined]
        return result

    def number(self, node: torch.fx.Node) -> int | None:
        """Return the number of the call that made ``node``."""
        return (node.meta.get("custom") or {}).get(KEY)

    def of(self, node: torch.fx.Node) -> list[Read]:
        """Return the sizes that the operator of ``node`` was given."""
        number = self.number(node)
        return [] if number is None else self._given[number]

    def _sizes(self, tensor: Tensor, sizes: Any, dim: int | None = None) -> Any:
        made = getattr(tensor, "lighten_made", None)
        if made is None:
            return sizes
        self.shapes[made] = torch.Size([int(size) for size in Tensor.size(tensor)])

        def tag(size: int, dim: int) -> Tagged:
            return Tagged.of(size, Formula(f"@{made[0]}.{made[1]}:{dim}"))

        if dim is not None:
            return tag(sizes, dim % tensor.ndim)
        return torch.Size([tag(size, at) for at, size in enumerate(sizes)])


GET_SHAPE = Tensor.shape.__get__  # type: ignore[attr-defined]


def _plain(value: Any) -> Any:
    if isinstance(value, Tagged):
        return int(value)
    if isinstance(value, slice):
        return slice(_plain(value.start), _plain(value.stop), _plain(value.step))
    return value


Sizes = Iterator[tuple[str, int, Any]]


def _no_sizes(args: Any, kwargs: Any) -> Sizes:
    yield from ()


def _listed(given: Any) -> tuple[Any, ...]:
    """Return sizes that are given as one list, or one by one."""
    return tuple(given[0]) if len(given) == 1 and isinstance(given[0], list | tuple) else tuple(given)


def _shape_at(first: int) -> Callable[[Any, Any], Sizes]:
    def sizes(args: Any, kwargs: Any) -> Sizes:
        given = args[first:] or (kwargs.get("size", kwargs.get("shape", ())),)
        for dim, size in enumerate(_listed(given)):
            yield "size", dim, size

    return sizes


def _normalized(args: Any, kwargs: Any) -> Sizes:
    shape = args[1] if len(args) > 1 else kwargs.get("normalized_shape", ())
    shape = shape if isinstance(shape, list | tuple) else (shape,)
    for at, size in enumerate(shape):
        yield "size", at - len(shape), size


def _unflattened(args: Any, kwargs: Any) -> Sizes:
    dim, sizes = (*args[1:], *(kwargs[k] for k in ("dim", "sizes") if k in kwargs))[:2]
    dim = dim if dim >= 0 else dim + args[0].ndim
    for at, size in enumerate(sizes):
        yield "size", dim + at, size


def _split(args: Any, kwargs: Any) -> Sizes:
    given = args[1] if len(args) > 1 else next((kwargs[k] for k in SPLIT_NAMES if k in kwargs), ())
    for at, size in enumerate(given if isinstance(given, list | tuple) else (given,)):
        yield "part", at, size


def _sliced(args: Any, kwargs: Any) -> Sizes:
    for index in args[1] if isinstance(args[1], tuple) else (args[1],):
        if isinstance(index, slice):
            yield "bound", 0, index.start
            yield "bound", 0, index.stop


def _narrowed(args: Any, kwargs: Any) -> Sizes:
    dim, start, length = (*args[1:], *(kwargs[k] for k in ("dim", "start", "length") if k in kwargs))[:3]
    yield "bound", 0, start
    yield "size", dim, length


def _grouped(at: int) -> Callable[[Any, Any], Sizes]:
    def sizes(args: Any, kwargs: Any) -> Sizes:
        yield "groups", 0, args[at] if len(args) > at else kwargs.get("groups", kwargs.get("num_groups"))

    return sizes


SPLIT_NAMES = ("split_size_or_sections", "split_size", "split_sizes")
SIZES: dict[str, Callable[[Any, Any], Sizes]] = {
    **dict.fromkeys(("view", "reshape", "expand", "broadcast_to", "new_zeros", "new_ones", "new_empty"), _shape_at(1)),
    **dict.fromkeys(("new_full",), lambda args, kwargs: _shape_at(0)(args[1:2], kwargs)),
    **dict.fromkeys(("zeros", "ones", "empty", "rand", "randn"), _shape_at(0)),
    **dict.fromkeys(("full",), lambda args, kwargs: _shape_at(0)(args[:1], kwargs)),
    **dict.fromkeys(("layer_norm", "rms_norm"), _normalized),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _grouped(6)),
    "group_norm": _grouped(1),
    "unflatten": _unflattened,
    **dict.fromkeys(("split", "split_with_sizes", "tensor_split"), _split),
    "__getitem__": _sliced,
    "narrow": _narrowed,
}
"""Where functions of PyTorch are given sizes, by name."""


@contextmanager
def tagged(model: nn.Module) -> Iterator[Reads]:
    """Tag the integers that modules, and plain objects and containers of theirs, hold; take the tags off afterwards.

    Modules of PyTorch itself are left as they are.
    """
    reads = Reads()
    EQUAL.clear()
    before = {module: dict(vars(module)) for module in model.modules()}
    for name, module in model.named_modules():
        own = type(module).__module__.partition(".")[0] in LIBRARIES or isinstance(module, nn.MultiheadAttention)
        if not own:
            for key, value in before[module].items():
                if key not in OWN:
                    vars(module)[key] = _tag(value, f"{name}.{key}" if name else key, reads.values, depth=0)
    forward = model.forward

    @functools.wraps(forward)
    def read(*args: Any, **kwargs: Any) -> Any:
        with reads:  # only here: what a tracer does with the inputs before is none of the forward's
            return forward(*args, **kwargs)

    vars(model)["forward"] = read
    try:
        yield reads
    finally:
        del vars(model)["forward"]
        reads.equal = list(dict.fromkeys(EQUAL))
        for module, attributes in before.items():
            vars(module).update({k: v for k, v in attributes.items() if k in vars(module) or k == "forward"})


OWN = frozenset(vars(nn.Module()))
"""Attributes of every module."""


def _tag(value: Any, name: str, values: dict[str, int], *, depth: int) -> Any:
    if type(value) is int:
        values[name] = value
        return Tagged.of(value, Formula(name))
    if type(value) in (list, tuple) and any(type(item) is int for item in value):
        return type(value)(_tag(item, f"{name}.{at}", values, depth=depth) for at, item in enumerate(value))
    if isinstance(value, dict) and any(type(item) is int for item in value.values()):
        copied = copy.copy(value)
        copied.update(
            {
                k: _tag(v, f"{name}.{k}", values, depth=1)
                for k, v in value.items()
                if isinstance(k, str) and "." not in k
            }
        )
        return copied
    if depth == 0 and _plain_object(value):
        copied = copy.copy(value)
        vars(copied).update({k: _tag(v, f"{name}.{k}", values, depth=1) for k, v in vars(value).items()})
        return copied
    return value


def _plain_object(value: Any) -> bool:
    known = isinstance(value, nn.Module | Tensor | type) or callable(value) or not hasattr(value, "__dict__")
    return not known and type(value).__module__.partition(".")[0] not in LIBRARIES
