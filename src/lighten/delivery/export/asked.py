"""Open dimensions that a user asks for, ``dynamic={"input": {2: "height"}}``: checked on the example and the model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lighten.delivery.export.dimensions import BATCH, TRACED, Open, batched, error_of, repeated
from lighten.delivery.export.place import place_of
from lighten.errors import UserError, did_you_mean, one_line

Wish = Mapping[str, Mapping[int, str]]
"""Names of open dimensions, by the input's name and the dimension's index."""

STEPS = (3, 1, 2, 4, 8, 16, 32, 64)
"""How much longer or shorter than in the example a dimension is tried: many networks want multiples."""


def asked(
    wish: Wish, names: Sequence[str], aliases: Mapping[str, str], inputs: Sequence[Tensor], batch: int | None
) -> Open:
    """Return what is open: what is asked, and the batch where nothing is said of it.

    Args:
        wish: what is asked.
        names: of the inputs, in the file.
        aliases: other names of inputs, with those in the file.
        inputs: of the example.
        batch: samples a call, where the batch is fixed.

    Raises:
        UserError: if there is no such input or dimension, or one name is given to two sizes.
    """
    own = batched(inputs)
    found: Open = [{0: BATCH} if each and batch is None else {} for each in own]
    if not isinstance(wish, Mapping):
        raise UserError(
            f'dynamic={wish!r}: expected names by input and dimension, as {{"{names[0]}": {{2: "height"}}}}'
        )
    for given, dimensions in wish.items():
        name = given if given in names else aliases.get(given, given)
        if name not in names:
            raise UserError(f"dynamic: no input is called {given!r}; {did_you_mean(str(given), [*names, *aliases])}")
        at = list(names).index(name)
        if not isinstance(dimensions, Mapping):
            raise UserError(f'dynamic[{given!r}]={dimensions!r}: expected names by dimension, as {{2: "height"}}')
        for dimension, called in dimensions.items():
            index = _index(given, dimension, called, inputs[at])
            if batch is not None and index == 0 and own[at]:
                raise UserError(
                    f"batch={batch} fixes dimension 0 of {given!r}, dynamic opens it; leave one of them out"
                )
            found[at][index] = called
    _check_sizes(names, found, inputs)
    return found


def as_traced(inputs: Sequence[Tensor], dimensions: Open) -> tuple[Tensor, ...]:
    """Return the inputs as a graph is traced with them: in an open size of one it would see a constant."""
    for name, size in sizes_of(inputs, dimensions).items():
        if name == BATCH or size < TRACED:
            inputs = _resized(inputs, dimensions, name, TRACED)
    return tuple(inputs)


def other_sizes(
    network: nn.Module, names: Sequence[str], inputs: Sequence[Tensor], dimensions: Open
) -> list[tuple[Tensor, ...]]:
    """Return the inputs with other sizes of each open name in turn: a smaller and a larger one that the network takes.

    Raises:
        UserError: if it takes no other size of one.
    """
    return [x for name in sizes_of(inputs, dimensions) for x in _others(network, names, inputs, dimensions, name)]


def only(dimensions: Open, kept: Iterable[str]) -> Open:
    """Return the open dimensions of some names."""
    return [{index: name for index, name in own.items() if name in set(kept)} for own in dimensions]


def sizes_of(inputs: Sequence[Tensor], dimensions: Open) -> dict[str, int]:
    """Return the size of each open name."""
    return {name: x.shape[i] for x, own in zip(inputs, dimensions, strict=True) for i, name in own.items()}


def fixed(names: Sequence[str], inputs: Sequence[Tensor], dimensions: Open, name: str, reason: str) -> UserError:
    """Return the error of an open dimension that the network or its graph fixes."""
    size = sizes_of(inputs, dimensions)[name]
    where = [
        f"{given!r} dimension {i}" for given, own in zip(names, dimensions, strict=True) for i in own if own[i] == name
    ]
    return UserError(
        f"dynamic: the forward fixes {name!r}, {' and '.join(where)}, at {size} ({reason}); leave it out, or give its "
        "name to all dimensions that change with it"
    )


def _others(
    network: nn.Module, names: Sequence[str], inputs: Sequence[Tensor], dimensions: Open, name: str
) -> Iterator[tuple[Tensor, ...]]:
    size = sizes_of(inputs, dimensions)[name]
    ways = ([size // 2, *(size - step for step in STEPS)], [*(size + step for step in STEPS), 2 * size])
    first: Exception | None = None
    taken = False
    for way in ways:
        for other in dict.fromkeys(way):
            changed = _resized(inputs, dimensions, name, other) if 0 < other != size else None
            error = error_of(network, changed) if changed is not None else None
            first = first or error
            if changed is not None and error is None:
                taken = True
                yield changed
                break
    if not taken:
        reason = f"{one_line(first, 150)}{place_of(first)}" if first is not None else "it has no other size"
        raise fixed(names, inputs, dimensions, name, reason)


def _resized(inputs: Sequence[Tensor], dimensions: Open, name: str, size: int) -> tuple[Tensor, ...]:
    changed = []
    for x, own in zip(inputs, dimensions, strict=True):
        for index, called in own.items():
            x = repeated(x, index, size) if called == name else x
        changed.append(x)
    return tuple(changed)


def _index(given: str, dimension: Any, called: Any, x: Tensor) -> int:
    if not isinstance(dimension, int) or isinstance(dimension, bool) or not -x.ndim <= dimension < x.ndim:
        raise UserError(
            f"dynamic[{given!r}]: there is no dimension {dimension!r}, it has {x.ndim} of shape {tuple(x.shape)}, "
            "counted from 0"
        )
    if not isinstance(called, str) or not called.isidentifier():
        raise UserError(f"dynamic[{given!r}][{dimension}]={called!r}: expected a name of letters, such as 'height'")
    return dimension % x.ndim


def _check_sizes(names: Sequence[str], dimensions: Open, inputs: Sequence[Tensor]) -> None:
    seen: dict[str, tuple[int, str]] = {}
    for given, own, x in zip(names, dimensions, inputs, strict=True):
        for index, called in own.items():
            size, where = seen.setdefault(called, (x.shape[index], f"{given!r} dimension {index}"))
            if size != x.shape[index]:
                raise UserError(
                    f"dynamic: {called!r} is {size} in {where}, and {x.shape[index]} in {given!r} dimension {index}; "
                    "sizes of one name are the same, give them two names"
                )
