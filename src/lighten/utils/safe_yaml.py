"""What a recipe may hold: plain values, few levels deep, that name things and can do nothing.

A recipe may come from a stranger. So no resolvers, which read the environment, no tags and targets, which make objects,
no aliases, which multiply, and nothing that is too long, too deep or too large to be meant.
"""

import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lighten.errors import RecipeError, shown

MAX_BYTES = 64 << 10
"""Of a recipe's file; a hundred times what one needs, and still parsed within a second."""
MAX_LEVELS = 16
MAX_TEXT = 1000
MAX_NUMBER = 2**63 - 1
_REFERENCE = re.compile(r"\$\{[A-Za-z_][\w.]*\}")
"""What may follow a dollar: the name of another key of the recipe."""
_UNREADABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def read_plain(path: Path) -> dict[str, Any]:
    """Return what a recipe's file holds, references unresolved.

    Raises:
        RecipeError: if it cannot be read, is no YAML, or holds more than :func:`check_plain` allows.
    """
    text = _read(path)
    try:
        _check_events(text)
        node = OmegaConf.load(io.StringIO(text))
        tree = OmegaConf.to_container(node, resolve=False)
    except (yaml.YAMLError, OSError, ValueError, OmegaConfBaseException) as error:
        raise RecipeError(f"{path.name}: cannot be read as YAML ({_reason(error)})") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path.name}: expected keys and values, as in the other recipes")
    check_plain(tree, f"{path.name}: ")
    return tree  # type: ignore[return-value]


def check_plain(tree: Any, place: str = "", level: int = 0) -> None:
    """Refuse what could do more than name things, and what nobody means.

    Args:
        tree: a mapping, list or value, as a file or the command line gives it.
        place: where it is, for messages: a key, or a file's name and ``": "``.
        level: how deep that is.

    Raises:
        RecipeError: on the first resolver, target, key that is no text, unreadable or overlong text, number that is
            not finite or does not fit 64 bits, or level too deep.
    """
    if isinstance(tree, str):
        _check_text(place, tree)
    elif isinstance(tree, float) and not math.isfinite(tree):
        raise RecipeError(f"{place}={tree}: expected a finite number")
    elif isinstance(tree, int | float):
        if abs(tree) > MAX_NUMBER:  # which Python may refuse to print
            raise RecipeError(f"{place}: expected a number that fits 64 bits")
    elif isinstance(tree, Mapping | list | tuple):
        if level >= MAX_LEVELS:
            raise RecipeError(f"{place}: lies {level} levels deep, expected fewer than {MAX_LEVELS}")
        for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            if isinstance(tree, Mapping):
                _check_key(place, key)
            check_plain(value, _under(place, key), level + 1)
    elif tree is not None:
        raise RecipeError(f"{place}: holds {type(tree).__name__}, expected text, numbers, true, false or null")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a tree by dotted keys; an empty mapping is a value.

    Example:
        >>> dict(leaves({"a": {"b": 1}, "c": {}}))
        {'a.b': 1, 'c': {}}
    """
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_key(place: str, key: Any) -> None:
    if not isinstance(key, str):
        raise RecipeError(f"{place.rstrip(': ') or 'a recipe'}: the key {key!r:.40} is no text; put it in quotes")
    _check_text(f"{place.rstrip(': ') or 'a recipe'}: the key {shown(key)}", key)
    if re.fullmatch(r"_\w+_", key):
        raise RecipeError(f"{_under(place, key)}: recipes name what they use and hold no code; take the key away")


def _check_text(place: str, text: str) -> None:
    if "${" in _REFERENCE.sub("", text):
        raise RecipeError(f"{place}={shown(text)}: resolvers are not allowed in recipes, expected a plain value")
    if len(text) > MAX_TEXT:
        raise RecipeError(f"{place}: has {len(text):,} characters, expected {MAX_TEXT:,} at most")
    if _UNREADABLE.search(text):
        raise RecipeError(f"{place}={shown(repr(text))}: holds a character that cannot be read; take it away")


def _under(place: str, key: object) -> str:
    return f"{place}.{key}" if place and not place.endswith(": ") else f"{place}{key}"


def _read(path: Path) -> str:
    try:
        if not path.is_file():
            raise RecipeError(f"{path.name}: is no file, expected a recipe")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"{path.name}: cannot be read ({error.strerror})") from None
    if len(content) > MAX_BYTES:
        raise RecipeError(f"{path.name}: is larger than {MAX_BYTES:,} bytes, expected a recipe")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path.name}: cannot be read as YAML ({error.reason} at byte {error.start})") from None


def _check_events(text: str) -> None:
    """Go through a file as it is written, before anything is made of it."""
    events: Iterable[Any] = yaml.parse(text, Loader=yaml.SafeLoader)
    level = 0
    for event in events:
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        wrong = None
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            wrong = "aliases are not allowed in recipes"
        elif getattr(event, "tag", None):
            wrong = f"no tags are allowed, {event.tag}"
        elif level > MAX_LEVELS:
            wrong = f"more than {MAX_LEVELS} levels"
        if wrong:
            raise yaml.YAMLError(f"line {event.start_mark.line + 1}: {wrong}")


def _reason(error: Exception) -> str:
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}: {problem}" if problem and mark else shown(" ".join(str(error).split()))
