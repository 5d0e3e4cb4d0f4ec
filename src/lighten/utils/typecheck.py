"""Check plain values against a dataclass."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from lighten.errors import did_you_mean

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    Sequence: "a list",
    dict: "keys and values",
    Mapping: "keys and values",
}
_TAKES: dict[Any, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (float, int),
    str: (str, float, int),
    list: (list,),
    Sequence: (list, tuple),
    dict: (Mapping,),
    Mapping: (Mapping,),
}


def type_error(schema: type, tree: Mapping[Any, Any], prefix: str = "") -> str | None:
    """Return one line on the first key of ``tree`` that ``schema`` lacks or whose value has another type, or ``None``.

    Interpolations such as ``${seed}`` pass. Fields with ``metadata={"internal": True}`` are not for trees.

    Example:
        >>> complaint(Recipe, {"compress": {"prune": {"amuont": 0.5}}})  # doctest: +SKIP
        "compress.prune.amuont is no such key; did you mean 'amount'? Choices: align, amount, …"
    """
    kinds = get_type_hints(schema)
    hints = {f.name: kinds[f.name] for f in fields(schema) if not f.metadata.get("internal")}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if key not in hints:
            return f"{path} is no such key; {did_you_mean(str(key), hints)}"
        found = value_error(path, hints[key], value)
        if found:
            return found
    return None


def value_error(path: str, kind: Any, value: Any) -> str | None:
    """Return one line on the first value that has another type than ``kind``, or ``None``.

    Args:
        path: what the message calls it.
        kind: a dataclass, ``bool``, ``int``, ``float``, ``str``, a list, sequence or mapping of them, or one of them
            or ``None``; of any other kind everything passes.
        value: of plain values.
    """
    kind, optional = _without_none(kind)
    if kind is Any or (value is None and optional) or (isinstance(value, str) and value.startswith("${")):
        return None
    if is_dataclass(kind) and isinstance(value, Mapping):
        return type_error(kind, value, f"{path}.")  # type: ignore[arg-type]
    plain: Any = dict if is_dataclass(kind) else get_origin(kind) or kind
    if plain not in _TAKES:
        return None
    if not isinstance(value, _TAKES[plain]) or (isinstance(value, bool) and plain is not bool):
        given = "null" if value is None else repr(value)
        return f"{path}={given}: expected {_WORDS[plain]}{' or null' if optional else ''}"
    inner = get_args(kind)
    items: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        items = [(f"{path}.{key}", item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"{path}[{place}]", item) for place, item in enumerate(value)]
    return next(filter(None, (value_error(place, inner[-1], item) for place, item in items)), None)


def as_text(kind: Any, value: Any) -> Any:
    """Return ``value`` with numbers as text where ``kind`` is text, as a recipe's own keys have it, also in lists."""
    kind, _ = _without_none(kind)
    if kind is str and isinstance(value, int | float):
        return str(value)
    if get_origin(kind) in (list, Sequence) and isinstance(value, list | tuple):
        return [as_text(get_args(kind)[0], item) for item in value]
    return value


def _without_none(kind: Any) -> tuple[Any, bool]:
    """Return what else a value may be, and whether it may be ``None``."""
    others = [k for k in get_args(kind) if k is not NoneType]
    if NoneType not in get_args(kind):
        return kind, False
    return others[0] if len(others) == 1 else Any, True
