"""Class swapping: modules become mixtures of their own class and one of ours, and back."""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

from torch import nn


class Mixed:
    """What a module's own class is mixed with; modules of such a class are copied and pickled as that mixture."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        mixins, kind = [], type(self)
        while "mixture" in kind.__dict__:
            mixin, kind = kind.__dict__["mixture"]
            mixins.append(mixin)
        return (_restored, (tuple(mixins), kind), self.__dict__) if mixins else super().__reduce_ex__(protocol)

    @classmethod
    def remixed(cls, change: Callable[[Any], Any]) -> Any:
        """Return this mixture on top of the class that ``change`` makes of the one below it."""
        kind: Any = cls
        if "mixture" not in kind.__dict__:
            return change(kind)
        mixin, base = kind.__dict__["mixture"]
        below = base.remixed(change) if hasattr(base, "remixed") else change(base)
        return mixed_class(mixin, below) if below is not base else kind


def born_as(module: Any) -> Any:
    """Return the class that a module had before anything was mixed in."""
    return next(c for c in type(module).__mro__ if issubclass(c, nn.Module) and not issubclass(c, Mixed))


def swap_class_(module: nn.Module, mixin: Any) -> None:
    """Turn ``module`` into an instance of ``mixin`` and its own class, in place; its class keeps its name."""
    base: Any = type(module)
    module.__class__ = mixed_class(mixin, base)


def restore_class_(module: nn.Module) -> None:
    """Give ``module`` the class back that it had, and take off what was added, in place."""
    while "mixture" in type(module).__dict__:
        mixin, base = type(module).__dict__["mixture"]
        for name in mixin.__annotations__:
            module.__dict__.pop(name, None)
        module.__class__ = base


@cache
def mixed_class(mixin: Any, base: Any) -> Any:
    """Return the class of modules that are both, with the forward of ``mixin``; there is one for each pair."""
    forward: Callable[..., Any] = mixin.forward
    members = {"__module__": base.__module__, "__doc__": base.__doc__, "mixture": (mixin, base)}
    mixed: Any = type(base.__name__, (mixin, base), members)

    @wraps(base.forward)
    def with_signature(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    mixed.forward = with_signature
    return mixed


def _restored(mixins: tuple[Any, ...], kind: Any) -> Any:
    """Return an empty module of a mixture, the last of ``mixins`` mixed in first."""
    for mixin in reversed(mixins):
        kind = mixed_class(mixin, kind)
    return kind.__new__(kind)
