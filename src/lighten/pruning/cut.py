"""Shrinking: a smaller copy of a model, checked against the masked one."""

import math
from collections.abc import Iterator
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lighten.errors import UserError, first_line
from lighten.pruning.attention import restate_attention_, restate_transformer_
from lighten.pruning.attributes import set_attributes_
from lighten.pruning.check import COARSE, TOLERANCES, difference, drop_cached_tensors_, plain_copy, trial_run
from lighten.pruning.earlier import compose, part_of_plan
from lighten.pruning.live import laid_out, remaining
from lighten.pruning.mask import check_fits, mask_, part_of, whole_norms
from lighten.pruning.norms import choose_paths_, narrowed_attributes, restore_
from lighten.pruning.outputs import narrow_output_
from lighten.pruning.plan import OF_MODULES, Plan
from lighten.pruning.pretrained import follow_config_
from lighten.pruning.rounding import rounding_shows
from lighten.pruning.tensors import keep_, randomise_, tensors_of
from lighten.utils.clone import clone, hooked_weights
from lighten.utils.compression import record_, record_of
from lighten.utils.layout import is_narrow
from lighten.utils.modules import modes_kept
from lighten.utils.preserve import preserved

HALVES = {"bf16": torch.bfloat16, "16": torch.float16}
"""Types of 16 bits by their names in a trainer's precision."""


@runtime_checkable
class CutsChannels(Protocol):
    """A module that keeps more than weights per channel, and says how to cut it."""

    def cut_channels_(self, tensor: str, dim: int, kept: Tensor) -> None:
        """Keep the channels ``kept`` of what goes with ``tensor``, a parameter or buffer of this module.

        Runs after the tensor itself was cut along ``dim``.
        """


def shrink(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of ``model`` without the channels that ``plan`` removes.

    ``model`` is not changed. A plan of ``Prune`` can be used after a fit with masks and after one with ``live=True``,
    which has already cut the model. Parameters keep their names, flags and hooks; modules keep their classes and
    modes; widths such as ``out_channels`` follow the weights. If ``nn.MultiheadAttention`` refuses its new widths, it
    becomes a :class:`~lighten.pruning.attention.HeadAttention`, a subclass. The result stores what was removed, by this
    plan and by earlier ones, in its :class:`~lighten.utils.compression.CompressionRecord`. A module with further state
    for each channel must be a :class:`CutsChannels`, and is then called to cut it. The config of a model of
    ``transformers`` gets the new widths, so that ``save_pretrained`` and ``from_pretrained`` work; if its family cannot
    express them, a warning says so.

    Args:
        model: may be masked or not; the plan alone decides what is removed.
        plan: for this model, or made by a callback for a part of it; then that part is cut.

    Raises:
        UserError: if the plan does not fit the model.
        RuntimeError: if the outputs of the masked and the cut model differ.

    Example:
        >>> from torch import nn, randn
        >>> from lighten.pruning import plan_pruning
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> shrink(model, plan_pruning(model, randn(1, 4), amount=0.5))[0]
        Linear(in_features=4, out_features=4, bias=True)
    """
    part = part_of(model, plan)
    if part is not model:
        whole = clone(model)
        whole.set_submodule(plan.part, shrink(part, plan))
        return whole
    with preserved(model):
        before = model if remaining(model, plan) is plan else laid_out(model)  # where a fit has cut some of it already
        small = masked_and_cut(before, plan)
        follow_config_(small, plan)
    _remember(small, plan)
    return small


def masked_and_cut(model: nn.Module, plan: Plan, *, holds_at_random: bool = False) -> nn.Module:
    """Return the cut copy of ``model``, which puts out what a masked copy does.

    Args:
        model: left as it is.
        plan: of this model.
        holds_at_random: whether the same cut was seen to hold with random weights.

    Raises:
        UserError: if the plan does not fit the model, or the outputs say nothing.
        RuntimeError: if they disagree.
    """
    check_fits(model, plan)
    masked = clone(model)
    drop_cached_tensors_(masked, plan.example)
    mask_(masked, plan)
    small = clone(masked, share_weights=True)  # cutting gives weights other data
    cut_(small, plan)
    _check(masked, small, plan, holds_at_random=holds_at_random)
    return small


def _remember(small: nn.Module, plan: Plan) -> None:
    """Note in the cut model, and in parts of it that can be built alone, all that was removed so far."""
    for name, module in small.named_modules():
        record = record_of(module)
        if not name or record.plan is not None or record.spec is not None:
            own = part_of_plan(plan, f"{name}.") if name else plan
            before = record_of(module, own=True).plan
            record_(module, plan=own if before is None else compose(before, own), live=None)


@torch.no_grad()
def cut_(model: nn.Module, plan: Plan) -> None:
    """Cut parameters and buffers in place, and the widths that modules remember; nothing is checked."""
    tensors = tensors_of(model)
    owners = _owners(model)
    for cut in plan.cuts:
        removed = set(cut.removed)
        kept = torch.tensor([i for i in range(cut.size) if i not in removed])
        for slot in cut.slots:
            if slot.role == "output":
                narrow_output_(model.get_submodule(slot.tensor), slot.dim, kept)
            if slot.role in OF_MODULES:
                continue
            tensor = tensors[slot.tensor]
            keep_(tensor, slot.dim, kept)
            for owner, name in owners.get(id(tensor), ()):
                if isinstance(owner, CutsChannels):
                    owner.cut_channels_(name, slot.dim, kept)
    set_attributes_(model, plan.attributes)
    for module, _, cut in whole_norms(model, plan):
        module.__dict__.update(narrowed_attributes(module, cut.size, cut.size - len(cut.removed)))
    for module in model.modules():
        restate_(module)
    choose_paths_(model)
    if is_narrow(model):
        cast(Any, model).to(memory_format=torch.contiguous_format)


def _check(masked: nn.Module, small: nn.Module, plan: Plan, *, holds_at_random: bool) -> None:
    for dtype in (torch.float64, torch.float32):  # some forwards cannot run in float64
        gap = _gap(masked, small, plan, dtype)
        if gap is None:
            continue
        if math.isnan(gap):
            raise UserError(
                f"{type(masked).__name__} puts out NaN on random input of the example's shapes, so the cut cannot be "
                "checked; plan with an example_input whose values are as the network wants them"
            )
        if not gap <= TOLERANCES[dtype]:
            most = trial_run(masked, plan.example, dtype).tolerance
            # with these weights rounding may decide, as in a choice among equal scores; random ones tell then
            if not gap <= most and not (
                rounding_shows(masked, plan.example, dtype, most)
                and (holds_at_random or _equal_at_random(masked, plan, dtype, most))
            ):
                _refuse(plan, gap, str(dtype), most)
        break
    else:
        raise UserError(f"{type(masked).__name__} runs neither in float64 nor in float32, so the cut cannot be checked")
    for dtype, autocast in _trained_in(masked, plan):
        gap = _gap(masked, small, plan, dtype, autocast)
        # where rounding shows in 16 bits, what was proved in more stands
        if gap is not None and gap > COARSE and not rounding_shows(masked, plan.example, dtype, COARSE, autocast):
            _refuse(plan, gap, f"{'autocast to ' if autocast else ''}{autocast or dtype}", COARSE)


def _equal_at_random(masked: nn.Module, plan: Plan, dtype: torch.dtype, tolerance: float) -> bool:
    """Say whether the cut holds with random weights."""
    one = plain_copy(masked)
    statistics = {slot.tensor for cut in plan.cuts for slot in cut.slots if slot.role == "statistic"}
    randomise_(one, statistics, torch.Generator().manual_seed(0))
    mask_(one, plan)
    other = clone(one, share_weights=True)
    cut_(other, plan)
    gap = _gap(one, other, plan, dtype)
    return gap is not None and gap <= tolerance


def _refuse(plan: Plan, gap: float, precision: str, tolerance: float) -> None:
    raise RuntimeError(
        f"masked and shrunk outputs differ by {gap:.2g} ({precision}), expected at most {tolerance:g}: "
        f"plan {plan.hash[:12]} would change the network; exclude the layers in doubt and plan again"
    )


def _gap(
    masked: nn.Module, small: nn.Module, plan: Plan, dtype: torch.dtype, autocast: torch.dtype | None = None
) -> float | None:
    """Return how far apart both are, or None where the masked one cannot be run so."""
    try:
        return difference(masked, small, plan.example, dtype=dtype, autocast=autocast)
    except Exception as error:
        try:
            difference(masked, masked, plan.example, dtype=dtype, autocast=autocast)
        except Exception:
            return None
        raise RuntimeError(f"the shrunk model cannot run: {first_line(error)}") from error


def _trained_in(model: nn.Module, plan: Plan) -> Iterator[tuple[torch.dtype, torch.dtype | None]]:
    """Yield the types of 16 bits in which the weights are, and those in which a fit computed."""
    for dtype in sorted({p.dtype for p in model.parameters()} & set(HALVES.values()), key=str):
        yield dtype, None
    precision = str(plan.settings.get("precision", ""))
    if precision.endswith("-mixed"):
        yield torch.float32, HALVES[precision.removesuffix("-mixed")]


def restate_(module: nn.Module) -> None:
    """Make the widths that a module remembers those of its weight, and weights that hooks compute those of now."""
    restore_(module)
    for name, compute in hooked_weights(module).items():
        setattr(module, name, compute())
    if not parametrize.is_parametrized(module):
        _restate(module)
        return
    with modes_kept(module):  # spectral norm changes its vectors whenever the weight is asked for in training mode
        module.eval()
        _restate(module)


def _restate(module: nn.Module) -> None:
    if isinstance(module, nn.modules.conv._ConvNd):
        _restate_conv(module)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.MultiheadAttention):
        restate_attention_(module)
    elif isinstance(module, nn.Transformer):
        restate_transformer_(module)
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.Bilinear):
        module.out_features, module.in1_features, module.in2_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        known = module.weight if module.weight is not None else module.running_mean
        if known is not None:
            module.num_features = len(known)
    elif isinstance(module, nn.GroupNorm):
        _restate_group_norm(module)
    elif hasattr(module, "normalized_shape"):
        _restate_layer_norm(module)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # transformers: a linear layer, transposed
        _restate_transposed(module)


def _restate_group_norm(norm: Any) -> None:
    if norm.weight is None:
        return
    if norm.num_groups > 1:
        norm.num_groups = len(norm.weight) * norm.num_groups // norm.num_channels
    norm.num_channels = len(norm.weight)


def _restate_layer_norm(norm: Any) -> None:
    weight, shape = getattr(norm, "weight", None), norm.normalized_shape
    if isinstance(weight, Tensor) and weight.ndim == 1:
        norm.normalized_shape = len(weight) if isinstance(shape, int) else type(shape)([len(weight)])


def _restate_transposed(module: Any) -> None:
    module.nx, module.nf = module.weight.shape


def _restate_conv(conv: Any) -> None:
    if conv.transposed:
        if conv.groups == conv.in_channels:
            conv.groups = conv.weight.shape[0]
        conv.in_channels, conv.out_channels = conv.weight.shape[0], conv.weight.shape[1] * conv.groups
        return
    depthwise = conv.groups > 1 and conv.groups == conv.in_channels
    outputs = conv.weight.shape[0]
    if depthwise:
        conv.groups = outputs * conv.groups // conv.out_channels
    conv.out_channels, conv.in_channels = outputs, conv.weight.shape[1] * conv.groups


def _owners(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            owners.setdefault(id(tensor), []).append((module, name))
    return owners
