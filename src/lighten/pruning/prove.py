"""Try every group before it is planned: cut it at random places, and see that the forward follows."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lighten.errors import UserError
from lighten.pruning.check import clone, difference, synthesise
from lighten.pruning.groups import NEVER_RUN, Group, Structure
from lighten.pruning.mask import mask_, tensors_of
from lighten.pruning.plan import Plan
from lighten.pruning.shrink import cut_
from lighten.pruning.trace import first_line, random_state_kept, source_of

TOLERANCE = 1e-4
"""What masked and cut outputs may differ by in float32, relative to the largest output."""


def prove(model: nn.Module, structure: Structure) -> Structure:
    """Return ``structure`` without the groups that the forward does not let go, each frozen with the reason.

    A graph does not say whether a size in a ``view`` or a ``slice`` follows the weights or is a number in the code.
    So every group is cut on a copy with random weights, once at random channels and once at all the others, and the
    copy's outputs are compared with those of masking. Where all groups together fail, halves are tried. Groups that
    fail alone are tried once more, tied across the equal parts into which the forward cuts them.

    Raises:
        UserError: if the model cannot be run on an input of the example's shapes.
    """
    passed, failed = _sift(model, structure)
    if failed:
        tied = structure.tied([structure.groups[i] for i in failed])
        if tied is not None:
            structure = tied
            passed, failed = _sift(model, structure)
    frozen = {layer: why for i, why in failed.items() for layer in structure.groups[i].layers}
    groups = tuple(structure.groups[i] for i in sorted(passed))
    return replace(structure, groups=groups, frozen={**frozen, **structure.frozen})


def _sift(model: nn.Module, structure: Structure) -> tuple[list[int], dict[int, str]]:
    """Return the groups that can be cut together, and the others with the reason, by index."""
    trial = _Trial(model, structure)
    passed: list[int] = []
    failed: dict[int, str] = {}

    def admit(block: Sequence[int]) -> None:
        why = trial.fails([*passed, *block])
        if why is None:
            passed.extend(block)
        elif len(block) == 1:
            failed[block[0]] = why
        else:
            admit(block[: len(block) // 2])
            admit(block[len(block) // 2 :])

    if structure.groups:
        admit(range(len(structure.groups)))
    return passed, failed


class _Trial:
    """A copy of the model with random weights, and two complementary choices of channels for each group."""

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        self._structure = structure
        generator = torch.Generator().manual_seed(0)
        self._model = clone(model).float().eval()
        _randomise(self._model, structure, generator)
        halves = [_split(group, generator) for group in structure.groups]
        self._choices = [[half[side] for half in halves] for side in (0, 1)]
        try:
            difference(self._model, self._model, structure.example, dtype=torch.float32, copies=False)
        except Exception as error:
            raise UserError(
                f"{type(model).__name__} cannot be run on random input of the example's shapes "
                f"({first_line(error)}); give an example_input that stands for any other"
            ) from error
        unseen = NEVER_RUN in structure.frozen.values()
        self._train = unseen and self._training_fails(self._model) is None

    def fails(self, groups: Sequence[int]) -> str | None:
        """Return why these groups cannot be cut together, or None where they can."""
        for choice in self._choices:
            removed = [choice[i] if i in groups else [] for i in range(len(choice))]
            cuts = self._structure.cuts(removed)
            plan = Plan.of_cuts(cuts, self._structure.example)
            masked = clone(self._model)
            mask_(masked, plan)
            small = clone(masked)
            try:
                cut_(small, plan)
                gap = difference(masked, small, self._structure.example, dtype=torch.float32, copies=False)
            except Exception as error:
                return f"cannot be cut: {_say(error)}"
            if not gap <= TOLERANCE:
                return "cannot be cut: the forward fixes the number or the places of its channels"
            if self._train and (why := self._training_fails(small)):
                return f"cannot be cut: {why}, in training mode"
        return None

    def _training_fails(self, model: nn.Module) -> str | None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        args, kwargs = synthesise(self._structure.example, device, torch.float32)
        try:
            with torch.no_grad(), random_state_kept(model):
                clone(model).train()(*args, **kwargs)
        except Exception as error:
            return _say(error)
        return None


def _randomise(model: nn.Module, structure: Structure, generator: torch.Generator) -> None:
    """Give every weight a value that shows, so that no zero-initialised branch hides a wrong cut."""
    statistics = {slot.tensor for group in structure.groups for slot in group.positions if slot.role == "statistic"}
    for name, tensor in tensors_of(model).items():
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point() and tensor.ndim > 1:
            fan_in = max(1, tensor[0].numel())
            tensor.data.copy_(torch.randn(tensor.shape, generator=generator) / fan_in**0.5)
        elif isinstance(tensor, nn.Parameter) or name in statistics:
            tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)


def _split(group: Group, generator: torch.Generator) -> tuple[list[int], list[int]]:
    order: Tensor = torch.randperm(group.width, generator=generator)
    at = int(torch.randint(1, group.width, (), generator=generator))
    return order[:at].tolist(), order[at:].tolist()


def _say(error: BaseException) -> str:
    source = source_of(error)
    return f"{first_line(error)} ({source})" if source else first_line(error)
