"""Cuts in a network that trains: parameters stay the objects that they are, with fewer channels.

Optimizers, schedulers, hooks and whoever else holds a ``Parameter`` need not be told: only its data change.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lighten.errors import UserError, first_line
from lighten.pruning.check import TOLERANCES, ComputedTypes, SwitchesOff, distance, drop_cached_tensors_, outputs_of
from lighten.pruning.cut import CutsChannels, cut_, masked_and_cut
from lighten.pruning.earlier import compose
from lighten.pruning.live import STATE_KEY, LiveCut, beyond, kept_of, laid_out, lay_out_, live_cut_of, slots_of
from lighten.pruning.mask import mask_
from lighten.pruning.norms import FUSED, SWITCHES, restore_
from lighten.pruning.plan import Plan
from lighten.pruning.tensors import tensors_of
from lighten.utils.clone import hooked_weights
from lighten.utils.compression import record_, record_of
from lighten.utils.optimizer_state import Kept, Slices
from lighten.utils.preserve import Snapshot

OWN = frozenset([*vars(nn.Module()), FUSED, *SWITCHES.values()])
"""Attributes in which every module keeps parameters, buffers, hooks and modules, and those that choose kernels."""


@torch.no_grad()
def cut_live_(model: nn.Module, plan: Plan) -> Slices:
    """Cut in place what ``plan`` removes and no earlier cut has; nothing is checked.

    Gradients are cut with their parameters.

    Returns:
        What stays of each parameter that has changed.
    """
    live = live_cut_of(model)
    more = plan if live is None else beyond(plan, live.plan)
    tensors, along = tensors_of(model), dict[nn.Parameter, list[tuple[int, Tensor]]]()
    for cut, slot in slots_of(more):
        parameter = tensors[slot.tensor]
        if isinstance(parameter, nn.Parameter):
            along.setdefault(parameter, []).append((slot.dim, kept_of(cut, parameter.device)))
    slices: Slices = {parameter: Kept(tuple(parameter.shape), places) for parameter, places in along.items()}
    for module in model.modules():
        restore_(module)
    held = {name: (type(module), _attributes(module)) for name, module in model.named_modules()}
    cut_(model, more)
    classes, attributes = dict(live.classes) if live else {}, dict(live.attributes) if live else {}
    for name, module in model.named_modules():
        kind, before = held[name]
        if type(module) is not kind:
            classes.setdefault(name, kind)
        for key, value in _attributes(module).items():
            if key in before and before[key] is not value:
                attributes.setdefault((name, key), before[key])
    earlier = live.before if live else record_of(model).plan
    past = (live.plan, *live.past) if live else ()
    record_(
        model, live=LiveCut(plan, past, earlier, classes, attributes),
        plan=plan if earlier is None else compose(earlier, plan),
    )  # fmt: skip
    return slices


def prove_cut_(
    model: nn.Module, plan: Plan, *, of: Plan | None = None, everywhere: Callable[[bool], bool] = bool
) -> Slices:
    """Cut in place, as :func:`cut_live_`, a masked model, and compare what it puts out before and after.

    Both run in place, in eval mode, with fake-quantizers off; where they differ, copies tell: what a forward selects by
    its values may depend on rounding.

    Args:
        model: masked by ``of``.
        plan: see there.
        of: a plan of which this one is a part; the rest is masked again. By default this one is all.
        everywhere: takes whether the cut holds here, returns whether it does on every rank.

    Raises:
        RuntimeError: if the outputs differ; the cut is done then.
        UserError: if they say nothing.
    """
    drop_cached_tensors_(model, plan.example)  # those of the widths before
    masked, tolerance = _answers(model, plan)
    slices = cut_live_(model, plan)
    mask_(model, of or plan)
    why = ""
    try:
        holds = distance(masked, _answers(model, plan)[0]) <= tolerance
        if not holds:
            masked_and_cut(laid_out(model), plan)
    except (RuntimeError, UserError) as error:
        why = first_line(error)
    if not everywhere(not why):
        raise RuntimeError(why or "the cut does not hold on another rank")
    return slices


def _answers(model: nn.Module, plan: Plan) -> tuple[list[Tensor], float]:
    """Return what the model puts out on the example, and how far apart equal networks may be."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    found = Snapshot(model, weights=False)
    seen = ComputedTypes()
    try:
        for module in model.eval().modules():
            if isinstance(module, SwitchesOff):
                module.switch_off_()
        outputs = outputs_of(model, plan.example, dtype, under=seen)
    finally:
        found.restore()
    return outputs, max(TOLERANCES[kind] for kind in {dtype, *seen.found} & TOLERANCES.keys())


def take_shapes_(module: nn.Module, state: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Do as :func:`take_shape_` for all parts of ``module`` that a fit has cut, or had when ``state`` was saved."""
    found = dict(state)
    parts = dict(module.named_modules())
    named = [
        name.removeprefix(prefix).removesuffix(STATE_KEY).removesuffix(".")
        for name in state
        if name.endswith(STATE_KEY)
    ]
    for part in dict.fromkeys([*named, *(name for name, part in parts.items() if live_cut_of(part) is not None)]):
        if part in parts:
            found = take_shape_(parts[part], found, f"{prefix}{part}." if part else prefix)
    return found


def take_shape_(model: nn.Module, state: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Give ``model`` the shape in which ``state`` was saved; return ``state`` without the entry that says so.

    Older state dicts of the same fit, and those that say nothing, are recognised by their shapes.

    Args:
        model: the network before it was cut, or as any checkpoint of the fit left it.
        state: of a module that has ``model`` in it under ``prefix``.
        prefix: what its names begin with, a dot at its end.
    """
    state = dict(state)
    given, live = state.pop(prefix + STATE_KEY, None), live_cut_of(model)
    if given is not None:
        wanted: Plan | None = Plan.from_json(bytes(given.tolist()).decode())
    elif live is None or _has_shape(live.plan, state, prefix):
        return state
    else:
        wanted = next((plan for plan in live.past if _has_shape(plan, state, prefix)), None)
    if live is None or wanted is None or wanted.hash != live.plan.hash:
        lay_out_(model)
        if wanted is not None:
            _check_shape(model, wanted)
            drop_cached_tensors_(model, wanted.example)
            cut_live_(model, wanted)
    return state


def _has_shape(plan: Plan, state: Mapping[str, Any], prefix: str) -> bool:
    """Return whether a state dict is of the network that ``plan`` leaves."""
    found = [
        state[name].shape[slot.dim] == cut.size - len(cut.removed)
        for cut, slot in slots_of(plan)
        if isinstance(state.get(name := prefix + slot.tensor), Tensor)
    ]
    return all(found)


def _check_shape(model: nn.Module, plan: Plan) -> None:
    tensors = tensors_of(model)
    for cut, slot in slots_of(plan):
        shape = tuple(tensors[slot.tensor].shape) if slot.tensor in tensors else ()
        if len(shape) <= slot.dim or shape[slot.dim] != cut.size:
            raise UserError(
                f"the checkpoint was cut while it trained, from {cut.size} channels in dimension {slot.dim} of "
                f"{slot.tensor}; this {type(model).__name__} has shape {shape or 'none'} there: give the model that "
                "the fit began with"
            )


def check_holders(whole: nn.Module, model: nn.Module, cuttable: Iterable[str]) -> None:
    """Check that nothing but parameters holds what would be cut.

    Args:
        whole: the module that trains.
        model: the part of it that is pruned.
        cuttable: names of its parameters that may lose channels.

    Raises:
        UserError: naming the module that keeps a view of a parameter, or state of its own for each channel.
    """
    own = next((name for name, module in model.named_modules() if isinstance(module, CutsChannels)), None)
    if own is not None:
        raise UserError(f"live=True: {own!r} keeps state of its own for each channel; prune with live=False")
    tensors, cuttable = tensors_of(model), list(cuttable)
    places = {_place(tensors[name]): name for name in cuttable if tensors[name].numel()}
    known = {id(tensor) for tensor in (*model.parameters(), *model.buffers(), *map(tensors.__getitem__, cuttable))}
    for name, module in whole.named_modules():
        for key, tensor in _held(module):
            computed = key in hooked_weights(module)  # anew before each forward
            if id(tensor) not in known and not computed and tensor.numel() and _place(tensor) in places:
                raise UserError(
                    f"live=True: {'.'.join(filter(None, (name, key)))} holds the numbers of the parameter "
                    f"{places[_place(tensor)]!r} beside it, and would keep the old ones after a cut; hold the "
                    "parameter itself, or prune with live=False"
                )


def _held(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that a module holds as attributes, buffers or in containers, by name."""
    stack = [*((key, value) for key, value in vars(module).items() if key not in OWN), *module._buffers.items()]
    depth = {id(value): 0 for _, value in stack}
    while stack:
        key, value = stack.pop()
        if isinstance(value, Tensor):
            yield key, value
        elif isinstance(value, Mapping | list | tuple) and depth.get(id(value), 3) < 3:
            pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
            inside = [(f"{key}[{at!r}]", item) for at, item in pairs]
            depth.update({id(item): depth[id(value)] + 1 for _, item in inside})
            stack += inside


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if key not in OWN and not isinstance(value, Tensor)}
