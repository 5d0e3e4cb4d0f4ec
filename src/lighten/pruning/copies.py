"""Masking of averages and other copies of a model's weights."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lighten.pruning.cut import restate_
from lighten.pruning.live import kept_of, slots_of
from lighten.pruning.mask import ZEROED
from lighten.pruning.norms import LIVE, choose_paths_, leave_out_as_, masked_norms, restore_
from lighten.pruning.plan import Plan
from lighten.pruning.tensors import keep_
from lighten.utils.compression import record_, record_of

MAX_DEPTH = 3
"""How many containers or objects deep a copy is looked for."""
LIBRARIES = ("torch", "lightning", "builtins")


class Copies:
    """Copies of ``whole`` that change as it trains: averaged models, modules of its make, dicts and lists of tensors.

    What does not change, such as a teacher of the same make, is nobody's average and stays as it is.

    Args:
        holders: objects whose attributes may hold copies.
        whole: the module that is trained.
        part: name of the pruned part in it.
        averages: returns what is an average for certain, though it may not change yet.
        inside: look for copies of the pruned part within ``whole`` too, such as the slow encoder of momentum contrast.
    """

    def __init__(
        self,
        holders: Iterable[Any],
        whole: nn.Module,
        part: str,
        *,
        averages: Callable[[], Iterable[Any]] = tuple,
        inside: bool = False,
    ) -> None:
        self._holders, self._whole, self._part = list(holders), whole, part
        self._averages, self._inside, self._hooked = averages, inside, set[nn.Module]()
        self._seen = {copy.key: copy.sum for copy in self._found(inside=inside)}

    def with_hooks(self, before_loading: Callable[..., None], after_saving: Callable[..., None]) -> None:
        """Have hooks called before modules that are copies load a state dict, and after they have made one.

        Copies are known by the names of their parameters: by the time that they load, the model may have other shapes.
        """
        makes = [dict(m.named_parameters()).keys() for m in (self._whole, self._whole.get_submodule(self._part))]
        for value in (*_held(self._holders), *self._averaged()):
            module = _inner(value) if isinstance(value, nn.Module) else None
            if module is None or module is self._whole or module in self._hooked:
                continue
            if dict(module.named_parameters()).keys() in makes:
                self._hooked.add(module)
                module.register_load_state_dict_pre_hook(before_loading)
                module.register_state_dict_post_hook(after_saving)

    @torch.no_grad()
    def mask_(self, plan: Plan) -> None:
        """Zero what ``plan``, of the pruned part, removes, and leave it out of norms."""
        norms = dict(masked_norms(self._whole.get_submodule(self._part)))
        for copy in self._found():
            if copy.averaged or self._seen.setdefault(copy.key, copy.sum) != copy.sum:
                zero_(copy.weights, plan)
                for name, norm in copy.modules_at(norms):
                    leave_out_as_(norm, norms[name].live)
                if copy.module is not None:
                    choose_paths_(copy.module)
                self._seen[copy.key] = math.nan  # it changes, as has been seen

    def following(self) -> list["_Copy"]:
        """Return the copies that follow the model, by the shapes that it has now: before it is cut."""
        known, followers = set[int](), []
        for copy in self._found(inside=self._inside):
            own = {id(tensor) for tensor in copy.weights.values()}
            changes = copy.averaged or self._seen.setdefault(copy.key, copy.sum) != copy.sum
            if changes and known.isdisjoint(own):  # a wrapper that averages, and what it holds, are one
                known |= own
                followers.append(copy)
        return followers

    def _found(self, *, inside: bool = False) -> Iterator["_Copy"]:
        averages = self._averaged()
        ours = {id(module) for module in self._whole.modules()} - {id(module) for module in averages}
        for value in (*_held(self._holders), *averages):
            if id(value) not in ours and (copy := self._copy(value)):
                yield copy
        if inside:
            part = self._whole.get_submodule(self._part)
            own = {id(module) for module in part.modules()}
            for module in self._whole.modules():
                if id(module) not in own and module is not self._whole and (found := _copied_weights(module, part)):
                    yield _Copy(id(module), found, self._learned, module, self._prefix, self._prefix, averaged=False)

    def _averaged(self) -> list[nn.Module]:
        return [module for module in self._whole.modules() if isinstance(module, AveragedModel)]

    @property
    def _learned(self) -> set[str]:
        return {name for name, _ in self._whole.get_submodule(self._part).named_parameters()}

    @property
    def _prefix(self) -> str:
        return f"{self._part}." if self._part else ""

    def _copy(self, value: Any) -> "_Copy | None":
        """Return what ``value`` is a copy of: all, or a part that stands for itself; None where that is not certain."""
        prefix = self._prefix
        around = {name for name, _ in self._whole.named_modules() if not name or prefix.startswith(f"{name}.")}
        inside = {name for name, _ in self._whole.named_modules() if name.rpartition(".")[0] in around and name}
        found = {}
        for name in sorted(around | inside):
            if weights := _copied_weights(value, self._whole.get_submodule(name)):
                before = f"{name}." if name else ""
                found[before] = {f"{before}{n}": tensor for n, tensor in weights.items()}
        if len(found) != 1 and "" not in found:
            return None
        before = "" if "" in found else next(iter(found))
        own = {n.removeprefix(prefix): t for n, t in found[before].items() if n.startswith(prefix)}
        module = _inner(value) if isinstance(value, nn.Module) else None
        average = isinstance(value, AveragedModel) or any(value is known for known in self._averages())
        return _Copy(id(value), own, self._learned, module, before, prefix, average) if own else None


@dataclass(frozen=True)
class _Copy:
    """Weights by their names in the pruned part; and the module, where it is one, ``before`` its names in the whole.

    Those ``learned`` tell whether it changes: a teacher that runs in training mode has moving statistics.
    """

    key: int
    weights: dict[str, Tensor]
    learned: set[str]
    module: nn.Module | None
    before: str
    prefix: str
    averaged: bool

    @property
    def sum(self) -> float:
        """Tell whether the weights have changed."""
        values = (tensor for name, tensor in self.weights.items() if name in self.learned)
        return sum(float(tensor.detach().double().sum()) for tensor in values)

    @torch.no_grad()
    def cut_(self, plan: Plan, model: nn.Module) -> None:
        """Cut as the pruned part was: gradients and numbers, and the attributes of modules that follow.

        Args:
            plan: of what the copy is now.
            model: the pruned part, after the cut.
        """
        for cut, slot in slots_of(plan):
            tensor = self.weights.get(slot.tensor)
            if tensor is not None:
                keep_(tensor, slot.dim, kept_of(cut, tensor.device))
        if self.module is None:
            return
        record = record_of(model)
        ours = dict(model.named_modules())
        for name, module in self.modules_at(ours):
            restore_(module)
            restate_(module)
            for owner, key in record.live.attributes:
                if owner == name and key in vars(module):
                    vars(module)[key] = deepcopy(vars(ours[name])[key])
            if not name:
                record_(module, live=record.live, plan=record.plan)
        choose_paths_(self.module)

    def modules_at(self, names: Iterable[str]) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules that have these names in the pruned part."""
        inside = {} if self.module is None else dict(self.module.named_modules())
        for name in names:
            whole = f"{self.prefix}{name}." if name else self.prefix
            key = whole.removeprefix(self.before).removesuffix(".")
            if whole.startswith(self.before) and (module := inside.get(key)) is not None:
                yield name, module


@torch.no_grad()
def zero_(tensors: Mapping[str, Tensor], plan: Plan, prefix: str = "") -> None:
    """Zero what ``plan`` removes, in those of its tensors that are there, under ``prefix`` and their names."""
    for cut in plan.cuts:
        for slot in cut.slots:
            tensor = tensors.get(f"{prefix}{slot.tensor}")
            if slot.role in ZEROED and tensor is not None:
                tensor.index_fill_(slot.dim, torch.tensor(cut.removed, device=tensor.device), 0)


def mask_state_(state: dict[str, Any], model: nn.Module, plan: Plan, prefix: str) -> None:
    """Make a state dict that of the masked network, whoever has put other weights into it.

    Args:
        state: of a module that has ``model`` in it under ``prefix``.
        model: masked by ``plan``.
        plan: of ``model``.
        prefix: what the names in ``state`` begin with, a dot at its end.
    """
    zero_(state, plan, prefix)
    for name, norm in masked_norms(model):
        key = f"{prefix}{name}." if name else prefix
        if any(f"{key}{own}" in state for own in norm._parameters) or not norm._parameters:
            state[key + LIVE] = norm.live


def _held(values: Iterable[Any], depth: int = MAX_DEPTH) -> Iterator[Any]:
    """Yield the modules, and the containers, that objects hold."""
    for value in values:
        if isinstance(value, nn.Module):
            yield value
        elif isinstance(value, Mapping | list | tuple):
            yield value
            inside = value.values() if isinstance(value, Mapping) else value
            if depth and not any(isinstance(v, Tensor) for v in inside):
                yield from _held(inside, depth - 1)
        elif depth and hasattr(value, "__dict__") and not callable(value):
            library = type(value).__module__.partition(".")[0] in LIBRARIES and depth < MAX_DEPTH
            yield from () if library else _held(vars(value).values(), depth - 1)


def _inner(module: nn.Module) -> nn.Module:
    """Return what a wrapper that averages holds."""
    inner = getattr(module, "module", None)
    return inner if isinstance(inner, nn.Module) else module


def _copied_weights(value: Any, model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of ``value`` by name if they are a copy of those of ``model``, else nothing."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if isinstance(value, nn.Module):
        inner = _inner(value)
        named = {**dict(inner.named_parameters()), **dict(inner.named_buffers())}
        complete = dict(inner.named_parameters()).keys() == dict(model.named_parameters()).keys()
    elif isinstance(value, Mapping):
        named = {str(n).removeprefix("module."): t for n, t in value.items() if isinstance(t, Tensor)}
        complete = any(isinstance(own.get(name), nn.Parameter) for name in named)
        named = {name: tensor for name, tensor in named.items() if not name.endswith(f".{LIVE}")}
    else:
        every = dict(model.named_parameters())
        trained = {name: tensor for name, tensor in every.items() if tensor.requires_grad}
        names = next((list(some) for some in (every, trained) if len(some) == len(value)), [])
        named = {n: t for n, t in zip(names, value, strict=False) if isinstance(t, Tensor)}
        complete = 0 < len(named) == len(value)
    fits = all(name in own and own[name].shape == tensor.shape for name, tensor in named.items())
    return named if complete and fits and named else {}
