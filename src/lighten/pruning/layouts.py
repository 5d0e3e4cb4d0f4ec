"""Where the channels that a fit has left of a layer's output were before."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lighten.errors import UserError
from lighten.pruning.check import TOLERANCES, outputs_of, plain_copy
from lighten.pruning.live import LiveCut, kept_of, laid_out, slots_of
from lighten.pruning.mask import mask_
from lighten.utils.inputs import leaves_of


@dataclass(frozen=True)
class Layout:
    """The channels that are left of some features, and where they were.

    Attributes:
        dim: along which they lie.
        kept: positions of those that are left.
        width: how many there were.
    """

    dim: int
    kept: Tensor
    width: int

    def __call__(self, features: Tensor) -> Tensor:
        """Return features of the width that they had, zero where masked channels would be."""
        shape = list(features.shape)
        shape[self.dim] = self.width
        return features.new_zeros(shape).index_copy(self.dim, self.kept.to(features.device), features)


def layouts_of(model: nn.Module, live: LiveCut, names: Sequence[str]) -> dict[str, Layout]:
    """Return the layouts of the outputs of layers that are narrower than before a fit has cut ``model``.

    Which channels are left is read off the plan, and proved by running copies of the model, cut and laid out.

    Args:
        model: cut, left as it is.
        live: what was cut.
        names: of its modules, whose outputs are (batch, channels, height, width), (batch, length, width) or (batch,
            width).

    Raises:
        UserError: naming the layer whose channels cannot be followed.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    whole = plain_copy(laid_out(model))
    mask_(whole, live.plan)  # norms leave out what is cut
    wide, narrow = (_features(copied.eval(), live, names, dtype) for copied in (whole, plain_copy(model)))
    found = {}
    for name in names:
        if name not in wide or wide[name].shape == narrow[name].shape:
            continue
        dim = 1 if wide[name].ndim == 4 else -1
        width = wide[name].shape[dim]
        choices = (kept for kept in _candidates(live, name, width) if _is_left(wide[name], narrow[name], dim, kept))
        kept = next(choices, None)
        if kept is None:
            raise UserError(
                f"layers: {name!r} has {narrow[name].shape[dim]} channels after a cut, {width} before, and which are "
                "left cannot be followed; compare another layer, or prune with live=False"
            )
        found[name] = Layout(dim, kept, width)
    return found


def _features(copied: nn.Module, live: LiveCut, names: Iterable[str], dtype: torch.dtype) -> dict[str, Tensor]:
    found = dict[str, Tensor]()

    def keep(name: str, output: object) -> None:
        tensors = [value for value in leaves_of(output) if isinstance(value, Tensor)]
        if tensors:
            found[name] = tensors[0].detach().clone()

    for name in names:
        copied.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: keep(name, output))
    outputs_of(copied, live.plan.example, dtype)
    return found


def _candidates(live: LiveCut, name: str, width: int) -> Iterator[Tensor]:
    """Yield positions that may be those left: of the last layers within ``name`` first, then of all others."""
    alike = [(cut, slot) for cut, slot in slots_of(live.plan) if cut.size == width and slot.role != "input"]
    inside = [pair for pair in alike if f"{pair[1].tensor}.".startswith(f"{name}." if name else "")]
    for cut, _ in (*reversed(inside), *alike):
        yield kept_of(cut, torch.device("cpu"))


def _is_left(wide: Tensor, narrow: Tensor, dim: int, kept: Tensor) -> bool:
    if len(kept) != narrow.shape[dim]:
        return False
    again = Layout(dim, kept, wide.shape[dim])(narrow)
    return bool((again - wide).abs().max() <= TOLERANCES.get(wide.dtype, 0.0) * wide.abs().max().clamp_min(1e-30))
