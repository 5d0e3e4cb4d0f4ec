"""Selection of the layers to quantize."""

from collections.abc import Sequence

from torch import nn

from lighten.errors import UserError
from lighten.quantization.layer_kinds import LAYERS, is_conv1d
from lighten.utils.modules import match_names

INT8 = "Conv1d to Conv3d, ConvTranspose1d to ConvTranspose3d, Linear, Embedding and the Conv1D of transformers"


def can_quantize(module: nn.Module) -> bool:
    """Return whether ``module`` is a layer that has an int8 form, and is nothing but that layer."""
    return _is_layer(module) and why_not(module) is None


def why_not(module: nn.Module) -> str | None:
    """Return why a layer stays in floating point though its kind has an int8 form, or ``None``."""
    if not _is_layer(module):
        return "its class has a forward of its own" if isinstance(module, LAYERS) else None
    if module._parameters.get("weight") is None:
        return (
            "its weight is computed from others (weight_norm, spectral_norm, a pruning mask, …); take that off with "
            "torch.nn.utils.parametrize.remove_parametrizations, or prune.remove"
        )
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    return None


def _is_layer(module: nn.Module) -> bool:
    if is_conv1d(module):
        return True
    kind = type(module)
    born = any(isinstance(module, layer) and kind.forward is layer.forward for layer in LAYERS)
    return born and kind.__call__ is nn.Module.__call__


def quantizable(model: nn.Module, exclude: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the names of layers to quantize, and of those that stay in floating point, with why."""
    names = [name for name, module in model.named_modules() if can_quantize(module)]
    whys = {name: why_not(module) for name, module in model.named_modules()}
    left = {name: why for name, why in whys.items() if why is not None}
    for pattern in exclude:
        matched = matched_modules(model, pattern)
        layers = [name for name in names if name in matched]
        if not layers and not matched & set(left):
            kinds = sorted({type(model.get_submodule(name)).__name__ for name in matched})
            raise UserError(
                f"exclude={pattern!r}: {', '.join(kinds)} has no int8 form and stays in floating point anyway; "
                f"int8 forms have {INT8}"
            )
        left |= dict.fromkeys(layers, f"excluded by {pattern!r}")
    names = [name for name in names if name not in left]
    if not names:
        why = "".join(f"; {name!r}: {why}" for name, why in left.items())
        raise UserError(f"{type(model).__name__} has no layer left to quantize; int8 forms have {INT8}{why}")
    return names, left


def matched_modules(model: nn.Module, pattern: str) -> set[str]:
    """Return the modules that ``pattern`` names, by name or by type, and everything under them."""
    modules = dict(model.named_modules())
    typed = [name for name, module in modules.items() if name and type(module).__name__ == pattern]
    return match_names(typed or [pattern], modules)
