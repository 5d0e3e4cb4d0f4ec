from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from lighten.utils.typecheck import as_text, type_error, value_error


@dataclass
class Inner:
    share: float = 0.5
    names: list[str] = field(default_factory=list)


@dataclass
class Outer:
    name: str = field(default="", metadata={"internal": True})
    count: int = 1
    flag: bool = False
    text: str | None = None
    anything: Any = None
    weights: dict[str, float] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"count": 3, "flag": True, "text": None, "anything": [1], "weights": {"a": 1, "b": 0.5}},
        {"inner": {"share": 1, "names": ["x"]}, "text": "bf16-mixed"},
        {"text": 16},
        {"count": "${inner.share}"},
    ],
)
def test_what_fits(tree):
    assert type_error(Outer, tree) is None


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"cuont": 1}, "cuont is no such key; did you mean 'count'?"),
        ({"name": "x"}, "name is no such key"),
        ({1: 2}, "1 is no such key"),
        ({"inner": {"shar": 1}}, "inner.shar is no such key; did you mean 'share'? Choices: names, share"),
        ({"count": "many"}, "count='many': expected a whole number"),
        ({"count": 1.5}, "count=1.5: expected a whole number"),
        ({"count": True}, "count=True: expected a whole number"),
        ({"count": None}, "count=null: expected a whole number"),
        ({"flag": 1}, "flag=1: expected true or false"),
        ({"text": ["a"]}, "text=['a']: expected text or null"),
        ({"inner": 3}, "inner=3: expected keys and values"),
        ({"inner": None}, "inner=null: expected keys and values"),
        ({"inner": {"share": "half"}}, "inner.share='half': expected a number"),
        ({"inner": {"names": "x"}}, "inner.names='x': expected a list"),
        ({"inner": {"names": ["x", []]}}, "inner.names[1]=[]: expected text"),
        ({"weights": {"a": "b"}}, "weights.a='b': expected a number"),
        ({"weights": [1]}, "weights=[1]: expected keys and values"),
    ],
)
def test_the_first_misfit_is_named(tree, says):
    assert type_error(Outer, tree).startswith(says)


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        (Sequence[str], ["a"], None),
        (Sequence[str] | None, None, None),
        (Sequence[int], (1, 2), None),
        (Mapping[str, Any], {"a": []}, None),
        (int | str | None, "x", None),
        (complex, "x", None),
        (Sequence[int], 3, "here=3: expected a list"),
        (Sequence[int], [1, "x"], "here[1]='x': expected a whole number"),
        (Mapping[str, Any] | None, [1], "here=[1]: expected keys and values or null"),
        (bool, "yes", "here='yes': expected true or false"),
    ],
)
def test_types_of_arguments(kind, value, says):
    assert value_error("here", kind, value) == says


def test_numbers_become_text_where_text_is_meant():
    assert as_text(str | None, 5) == "5"
    assert as_text(Sequence[str] | None, [1, "b"]) == ["1", "b"]
    assert as_text(int, 5) == 5
    assert as_text(str, None) is None
