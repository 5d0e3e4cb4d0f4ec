"""Does a tree of plain values fit a dataclass? The first thing that does not, in words."""

from collections.abc import Mapping
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
    dict: "keys and values",
}
_TAKES: dict[Any, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (float, int),
    str: (str, float, int),
    list: (list,),
    dict: (Mapping,),
}


def complaint(schema: type, tree: Mapping[Any, Any], prefix: str = "") -> str | None:
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
        found = _misfit(path, hints[key], value)
        if found:
            return found
    return None


def _misfit(path: str, kind: Any, value: Any) -> str | None:
    optional = NoneType in get_args(kind)
    if optional:
        kind = next(k for k in get_args(kind) if k is not NoneType)
    if kind is Any or (value is None and optional) or (isinstance(value, str) and value.startswith("${")):
        return None
    if is_dataclass(kind) and isinstance(value, Mapping):
        return complaint(kind, value, f"{path}.")  # type: ignore[arg-type]
    plain: Any = dict if is_dataclass(kind) else get_origin(kind) or kind
    if not isinstance(value, _TAKES[plain]) or (isinstance(value, bool) and plain is not bool):
        given = "null" if value is None else repr(value)
        return f"{path}={given}: expected {_WORDS[plain]}{' or null' if optional else ''}"
    inner = get_args(kind)
    items: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        items = [(f"{path}.{key}", item) for key, item in value.items()]
    elif isinstance(value, list):
        items = [(f"{path}[{place}]", item) for place, item in enumerate(value)]
    return next(filter(None, (_misfit(place, inner[-1], item) for place, item in items)), None)
