"""What a module is called with and answers while somebody else's code runs, and methods replaced for that time."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lighten.utils.inputs import Call, leaves_of


class Answer(NamedTuple):
    """One call of a module.

    Attributes:
        call: its arguments.
        output: what it returned.
        features: of its layers, where they are recorded.
    """

    call: Call
    output: Any
    features: dict[str, Tensor]


class Capture:
    """A forward hook, ``with_kwargs``, that keeps each call of a module while it is on.

    Copies and pickles of the module have one that is never on.

    Args:
        features: gives those of the call that has just ended.
    """

    def __init__(self, features: Callable[[], dict[str, Tensor]] | None = None) -> None:
        self.on = False
        self.answers: list[Answer] = []
        self._features = features

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Keep a call."""
        if self.on:
            features = {} if self._features is None else self._features()
            self.answers.append(Answer((args, kwargs), output, features))

    def __reduce__(self) -> tuple[Any, ...]:
        return Capture, ()

    def take(self, loss: Tensor | None = None) -> list[Answer]:
        """Return what was kept, all of it or what ``loss`` comes from, and forget that."""
        answers = self.answers if loss is None else behind(loss, self.answers)
        taken = {id(answer) for answer in answers}
        self.answers = [answer for answer in self.answers if id(answer) not in taken]
        return answers


class Replaced:
    """A method of one object in place of its own, until ``undo``; it gets the own one, then the arguments.

    Copies and pickles of the object have their own method back.

    Args:
        owner: whose method it is.
        name: of the method.
        call: stands in for it.
    """

    def __init__(self, owner: nn.Module, name: str, call: Callable[..., Any]) -> None:
        self.owner, self.name, self.call = owner, name, call
        self.__wrapped__ = getattr(owner, name)
        self._before = vars(owner).get(name)
        setattr(owner, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call what stands in."""
        return self.call(self.__wrapped__, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.owner, self.name)  # the class's: attributes of a copy come after it

    def undo(self) -> None:
        """Take it away, also from below what has replaced it in turn."""
        above = vars(self.owner).get(self.name)
        if above is self:
            if self._before is None:
                delattr(self.owner, self.name)
            else:
                setattr(self.owner, self.name, self._before)
        while isinstance(above, Replaced):
            if above._before is self:
                above._before, above.__wrapped__ = self._before, self.__wrapped__
            above = above._before


def behind(loss: Tensor, answers: Iterable[Answer]) -> list[Answer]:
    """Return the answers that ``loss`` was computed from, by its graph."""
    seen: set[Any] = set()
    ahead = [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            ahead += [below for below, _ in node.next_functions]
    return [answer for answer in answers if any(node in seen for node in _nodes(answer.output))]


@contextmanager
def lent(owner: nn.Module, name: str, module: nn.Module) -> Iterator[None]:
    """Let ``module`` be a part of ``owner`` inside."""
    owner.add_module(name, module)
    try:
        yield
    finally:
        del owner._modules[name]


def _nodes(output: Any) -> list[torch.autograd.graph.Node]:
    return [x.grad_fn for x in leaves_of(output) if isinstance(x, Tensor) and x.grad_fn is not None]
