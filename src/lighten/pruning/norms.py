"""Norms over channels while some are masked: their statistics leave the removed channels out."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

LIVE = "live"
"""The buffer that says, with 1 and 0, which channels count."""


class _Masked:
    """Mixed into a norm's class while channels of it are masked."""

    live: Tensor


class _LayerNorm(_Masked, nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        """Normalize over the live channels of the last dimension."""
        return _normalize(input, self.live, (-1,), self.eps, self.weight, self.bias)


class _RMSNorm(_Masked, nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        """Divide by the root mean square of the live channels of the last dimension."""
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        wide = _wide(x)
        mean = (wide * self.live).square().sum(-1, keepdim=True) / self.live.sum()
        return (wide * torch.rsqrt(mean + eps)).to(x.dtype) * self.weight


class _GroupNorm(_Masked, nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        """Normalize over the live channels and all places."""
        shape = (-1, *[1] * (input.ndim - 2))
        bias = self.bias.view(shape) if self.bias is not None else None
        dims = tuple(range(1, input.ndim))
        return _normalize(input, self.live.view(shape), dims, self.eps, self.weight.view(shape), bias)


def _normalize(
    x: Tensor, live: Tensor, dims: tuple[int, ...], eps: float, weight: Tensor, bias: Tensor | None
) -> Tensor:
    wide = _wide(x)
    count = live.sum() * (wide[0].numel() // live.numel() if len(dims) > 1 else 1)
    centred = wide - (wide * live).sum(dims, keepdim=True) / count
    variance = (centred * live).square().sum(dims, keepdim=True) / count
    normal = (centred * torch.rsqrt(variance + eps)).to(x.dtype) * weight
    return normal if bias is None else normal + bias


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.LayerNorm: _LayerNorm,
    nn.RMSNorm: _RMSNorm,
    nn.GroupNorm: _GroupNorm,
}
MADE: dict[Any, Any] = {}
"""The masked subclasses, by what they were made of."""


def maskable(module: nn.Module) -> bool:
    """Say whether ``module`` is a norm over channels, with a weight, that can leave some of them out."""
    return isinstance(module, tuple(KINDS)) and isinstance(module.weight, Tensor)


def leave_out_(module: nn.Module, removed: Iterable[int]) -> None:
    """Make a norm over channels compute what it will with ``removed`` cut; other modules are left as they are."""
    whole = isinstance(module, nn.GroupNorm) and module.num_groups > 1  # whole groups go: nothing to leave out
    if not maskable(module) or whole:
        return
    weight = cast(Tensor, module.weight)
    live = torch.ones(weight.shape, device=weight.device, dtype=weight.dtype)
    live[torch.tensor(sorted(removed), device=weight.device)] = 0
    restore_(module)
    module.register_buffer(LIVE, live, persistent=False)
    module.__class__ = _masked_class(type(module))


def restore_(module: nn.Module) -> None:
    """Make a norm count all its channels again."""
    if isinstance(module, _Masked):
        masked = cast(Any, module)
        del masked._buffers[LIVE]
        masked.__class__ = masked.plain


def _masked_class(kind: Any) -> Any:
    """Return a subclass of ``kind`` whose ``super().forward`` ends at the masked norm."""
    if kind in MADE:
        return MADE[kind]
    base = next(masked for plain, masked in KINDS.items() if issubclass(kind, plain))
    members: dict[str, Any] = {"__doc__": kind.__doc__, "__module__": kind.__module__, "plain": kind}
    MADE[kind] = type(kind.__name__, (base,) if kind in KINDS else (kind, base), members)
    return MADE[kind]
