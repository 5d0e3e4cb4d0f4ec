"""Rules of transforms along places, which leave channels apart: Fourier transforms, windows, complex numbers."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.fx import Node

from lighten.pruning.basics import count, each, freeze, given, shape_of
from lighten.pruning.labels import along, compact, varies
from lighten.pruning.operators import name_of
from lighten.pruning.trace import Tracer
from lighten.pruning.weights import Weight


def _fft(tracer: Tracer, node: Node, x: Any, size: Any = None, dim: Any = None, *_: Any, **named: Any) -> Any:
    """Places along some dimensions are mixed; where channels lie along one of them, they are too."""
    labels = given(tracer, x)
    dim = named.get("dim", dim)
    if dim is None:
        flat = name_of(node).endswith("2")
        dim = (-2, -1) if flat else range(labels.ndim) if name_of(node).endswith("n") else -1
    dims = [dim] if isinstance(dim, int) else list(dim)
    if any(varies(labels, d) for d in dims):
        return freeze(tracer, node, x)
    for d in dims:
        labels = labels.narrow(d, 0, 1)
    return labels.expand(shape_of(node))


def _as_real(tracer: Tracer, node: Node, x: Any) -> Tensor:
    """A dimension of two is new: real and imaginary part of one number go together."""
    labels: Tensor = given(tracer, x)
    return labels.unsqueeze(-1).expand(shape_of(node))


def _as_complex(tracer: Tracer, node: Node, x: Any) -> Tensor:
    """Two numbers become one."""
    labels: Tensor = given(tracer, x)
    if varies(labels, -1):
        tracer.labels.unite(labels, labels[..., :1].expand_as(labels))
    return labels[..., 0]


def _unfold(tracer: Tracer, node: Node, x: Any, kernel: Any, *_: Any, **__: Any) -> Any:
    """(…, channels, height, width) becomes (…, channels times places of a window, windows)."""
    labels = given(tracer, x)
    if any(varies(labels, d) for d in range(labels.ndim) if d != labels.ndim - 3):
        return freeze(tracer, node, x)
    channels = compact(labels).flatten()
    if len(channels) == 1:
        return labels[..., 0].narrow(-2, 0, 1).expand(shape_of(node))
    return along(channels.repeat_interleave(_places(kernel)), shape_of(node), -2)


def _fold(tracer: Tracer, node: Node, x: Any, size: Any, kernel: Any, *_: Any, **__: Any) -> Any:
    """The way back: what is put at the places of a window of one channel is of that channel."""
    labels = given(tracer, x)
    if any(varies(labels, d) for d in range(labels.ndim) if d != labels.ndim - 2):
        return freeze(tracer, node, x)
    parts = tracer.labels.unite_along(labels, -2).reshape(-1, _places(kernel))
    shape = shape_of(node)
    return along(tracer.labels.unite_along(parts, 0), shape, len(shape) - 3)


def _places(kernel: Any) -> int:
    return kernel**2 if isinstance(kernel, int) else count(kernel) if len(kernel) > 1 else kernel[0] ** 2


def _part(tracer: Tracer, node: Node, x: Any, *_: Any) -> Any:
    """Real or imaginary parts, or conjugates: each of one number."""
    labels = given(tracer, x) if isinstance(x, Weight) else x
    return each(node, lambda v: labels)


FOURIER = [
    f"fft_{sign}{kind}{dims}" for kind in ("fft", "rfft", "hfft") for sign in ("", "i") for dims in ("", "2", "n")
]
TRANSFORMS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(FOURIER, _fft),
    **dict.fromkeys(("real", "imag", "conj", "_conj", "resolve_conj", "conj_physical"), _part),
    "view_as_real": _as_real,
    "view_as_complex": _as_complex,
    "im2col": _unfold,
    "col2im": _fold,
}
