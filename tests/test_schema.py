from dataclasses import dataclass, field
from typing import Any

import pytest

from lighten.schema import complaint


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
    assert complaint(Outer, tree) is None


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
    assert complaint(Outer, tree).startswith(says)
