"""Norms that leave masked channels out of their statistics."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

LIVE = "live"
"""The attribute, and the entry of the state dict, that says which channels count."""
SINGLE = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
"""Norms in which channels do not meet."""


class _Masked(nn.Module):
    """Mixed into a norm's class while channels of it are masked: what its forward computes, it does of live ones alone.

    ``live`` is a vector where the norm functions that the forward calls see the live channels, and else has the shape
    that says where channels lie in what the forward takes (:func:`_laid`): then all of it runs on the live ones.
    It is no buffer, for whoever averages weights walks through the buffers of two models side by side.
    """

    live: Tensor
    kept: Tensor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.live.ndim > 1:
            return _run_narrow(self, args, kwargs)
        with _LiveOnly(self.kept, len(self.live)):
            return super().forward(*args, **kwargs)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        super()._apply(fn, *args, **kwargs)
        own = next(self.parameters(), None)
        device = fn(torch.empty(0, device=self.kept.device)).device if own is None else own.device
        if device.type != "meta":
            self.live, self.kept = self.live.to(device), self.kept.to(device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + LIVE] = self.live

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Become what the state dict is of: masked as it says, or not at all."""
        masked = prefix + LIVE in state_dict
        if masked:
            _set_live(self, state_dict.pop(prefix + LIVE))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if masked:
            state_dict[prefix + LIVE] = self.live
        else:
            restore_(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        made: Any = super().__reduce_ex__(protocol)
        return (_unpickled, (cast(Any, self).plain,), *made[2:])


def _unpickled(kind: type[nn.Module]) -> nn.Module:
    made = _masked_class(kind)
    return made.__new__(made)


def _laid(live: Tensor, dim: int | None) -> Tensor:
    """Return ``live`` in a shape that says where channels lie: a row if last, else a one after them."""
    flat = live.flatten()
    return flat if dim is None else flat[None] if dim == -1 else flat.reshape(*(1,) * dim, -1, 1)


def _run_narrow(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Run the forward of ``module`` on the live channels alone, as it will be once it is cut; the others put out 0."""
    kept, width = module.kept, module.live.numel()
    dim = -1 if module.live.shape[-1] > 1 else module.live.ndim - 2

    def narrowed(value: Any) -> Any:
        given = isinstance(value, Tensor) and value.ndim > dim and value.ndim and value.shape[dim] == width
        return value.index_select(dim, kept) if given else value

    small = module.plain.__new__(module.plain)
    small.__dict__.update(vars(module))
    small.__dict__.update(
        narrowed_attributes(module, width, len(kept)),
        _parameters={name: _narrow(own, kept, width) for name, own in module._parameters.items()},
        _buffers={name: _narrow(own, kept, width) for name, own in module._buffers.items()},
    )
    args, kwargs = tuple(map(narrowed, args)), {name: narrowed(value) for name, value in kwargs.items()}
    out = module.plain.forward(small, *args, **kwargs)
    shape = list(out.shape)
    shape[dim] = width
    return out.new_zeros(shape).index_copy_(dim, kept, out)  # out of place autocast would promote it


def _narrow(own: Any, kept: Tensor, width: int) -> Any:
    """Return the live channels of a parameter that has nothing but channels."""
    if not isinstance(own, Tensor) or own.numel() != width or width not in own.shape:
        return own
    return own.index_select(own.shape.index(width), kept)


def narrowed_attributes(module: nn.Module, width: int, left: int) -> dict[str, Any]:
    """Return the attributes of a norm of ``width`` channels that say so, as they are with ``left``."""
    found: dict[str, Any] = {}
    for name, value in vars(module).items():
        if isinstance(value, int) and not isinstance(value, bool) and value == width:
            found[name] = left
        elif isinstance(value, tuple | list) and list(value) == [width]:
            found[name] = type(value)([left])
    return found


class _LiveOnly(TorchFunctionMode):
    """Cut, within a forward, what norms over ``width`` channels are given, and lay their outputs out in full again."""

    def __init__(self, kept: Tensor, width: int) -> None:
        super().__init__()
        self._kept, self._width = kept, width

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule = NORM_RULES.get(func)
        if rule is None:
            return func(*args, **(kwargs or {}))
        return rule(self, func, *args, **(kwargs or {}))

    def over_last(self, func: Any, x: Tensor, shape: Any, *rest: Any, **named: Any) -> Any:
        """Run a layer norm or RMS norm."""
        if [shape] != [self._width] and list(shape) != [self._width]:
            return func(x, shape, *rest, **named)
        rest, named = (self._narrowed(rest), self._narrowed(named))
        return self._laid_out(func(x.index_select(-1, self._kept), [len(self._kept)], *rest, **named), x, -1)

    def over_second(self, func: Any, x: Tensor, groups: int, *rest: Any, **named: Any) -> Any:
        """Run a group norm; of several groups whole ones go, and nothing is to be left out."""
        if groups != 1 or x.shape[1] != self._width:
            return func(x, groups, *rest, **named)
        rest, named = (self._narrowed(rest), self._narrowed(named))
        return self._laid_out(func(x.index_select(1, self._kept), 1, *rest, **named), x, 1)

    def _narrowed(self, given: Any) -> Any:
        def cut(value: Any) -> Any:
            return value.index_select(0, self._kept) if isinstance(value, Tensor) and value.ndim == 1 else value

        if isinstance(given, Mapping):
            return {name: cut(value) for name, value in given.items()}
        return tuple(cut(value) for value in given)

    def _laid_out(self, small: Tensor, x: Tensor, dim: int) -> Tensor:
        return small.new_zeros(x.shape).index_copy_(dim, self._kept, small)  # out of place autocast would promote it


NORM_RULES: dict[Any, Callable[..., Any]] = {
    F.layer_norm: _LiveOnly.over_last,
    F.rms_norm: _LiveOnly.over_last,
    F.group_norm: _LiveOnly.over_second,
    torch.layer_norm: _LiveOnly.over_last,
    torch.rms_norm: _LiveOnly.over_last,
    torch.group_norm: _LiveOnly.over_second,
}
MADE: dict[Any, Any] = {}
"""The masked subclasses, by what they were made of."""


def leave_out_(module: nn.Module, removed: Iterable[int], width: int, dim: int | None = None) -> None:
    """Make a norm over channels compute what it will with ``removed`` cut; norms channel by channel stay as they are.

    Args:
        module: its forward calls a layer norm, an RMS norm or a group norm of one group; or is a norm as a whole.
        removed: indices of the channels.
        width: how many channels there are.
        dim: of a norm as a whole: where they lie in what it takes and puts out, -1 if last.
    """
    whole = isinstance(module, nn.GroupNorm) and module.num_groups > 1  # whole groups go: nothing to leave out
    if isinstance(module, SINGLE) or whole:
        return
    live = torch.ones(width, dtype=torch.bool)
    live[torch.tensor(sorted(removed), dtype=torch.int64)] = False
    restore_(module)
    module.__class__ = _masked_class(type(module))
    _set_live(module, _laid(live, dim))


def leave_out_as_(module: nn.Module, live: Tensor) -> None:
    """Make a norm leave out what another one does whose ``live`` this is."""
    leave_out_(module, torch.nonzero(live.flatten() == 0).flatten().tolist(), live.numel())
    if isinstance(module, _Masked):
        _set_live(module, live)


def restore_(module: nn.Module) -> None:
    """Make a norm count all its channels again."""
    if isinstance(module, _Masked):
        masked = cast(Any, module)
        del masked.live, masked.kept
        masked.__class__ = masked.plain


def masked_norms(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the norms that leave channels out now, by name."""
    for name, module in model.named_modules():
        if isinstance(module, _Masked):
            yield name, module


def restore_masks_(module: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Make the norms of ``module`` ready to load ``state_dict``: those masked that were masked when it was saved.

    Args:
        module: what the state dict is of, masked or not.
        state_dict: its entries ``<norm>.live`` say which channels of a norm count.
    """
    for name, part in module.named_modules(remove_duplicate=False):
        key = f"{name}.{LIVE}" if name else LIVE
        own = {**part._parameters, **part._buffers}
        if key not in state_dict or LIVE in own:
            restore_(part)
        elif not isinstance(part, _Masked):
            leave_out_as_(part, state_dict[key])
    choose_paths_(module)


SWITCHES: dict[type[nn.Module], str] = {
    nn.TransformerEncoderLayer: "activation_relu_or_gelu",
    nn.TransformerEncoder: "use_nested_tensor",
}
"""PyTorch's modules with fused kernels for evaluation, and the attribute that is true where such a kernel may run."""
FUSED = "fused_kernel"
"""The attribute in which such a module keeps what its own was before it was set to false."""


def choose_paths_(model: nn.Module) -> None:
    """Let PyTorch's fused kernels, which read weights past their modules, run only where they compute the same.

    They know no norm that leaves channels out; and an encoder gives its layers nested tensors, which layers whose
    attention has widths of its own, or an odd number of heads, do not take.
    """
    for module in model.modules():
        switch = next((name for kind, name in SWITCHES.items() if isinstance(module, kind)), None)
        if switch is None or not hasattr(module, switch):
            continue
        blocked = any(isinstance(part, _Masked) for part in module.modules()) or (
            isinstance(module, nn.TransformerEncoder) and not all(map(_takes_nested, module.modules()))
        )
        own = vars(module)
        if blocked and FUSED not in own:
            own[FUSED], own[switch] = own[switch], False
        elif not blocked and FUSED in own:
            own[switch] = own.pop(FUSED)


def _takes_nested(module: Any) -> bool:
    attention = isinstance(module, nn.MultiheadAttention)
    return not attention or (module._qkv_same_embed_dim and module.num_heads % 2 == 0)


def _set_live(module: Any, live: Tensor) -> None:
    device = next((p.device for p in module.parameters()), live.device)
    module.live = (live != 0).to("cpu" if device.type == "meta" else device)
    module.kept = torch.nonzero(module.live.flatten()).flatten()


def _masked_class(kind: Any) -> Any:
    """Return a subclass of ``kind`` whose forward leaves channels out."""
    if kind not in MADE:
        members: dict[str, Any] = {"__doc__": kind.__doc__, "__module__": kind.__module__, "plain": kind}
        MADE[kind] = type(kind.__name__, (_Masked, kind), members)
    return MADE[kind]
