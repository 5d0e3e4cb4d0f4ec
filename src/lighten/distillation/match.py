"""Matching of the student's layers with the teacher's, and recording of their outputs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from lighten.distillation.settings import UNIFORM, check_layers
from lighten.errors import UserError, did_you_mean

SELF_ATTENTION = {kind: (kind, f"{kind[0]}_lin", f"{kind[0]}_proj") for kind in ("query", "key", "value")}
"""What families call the linear layers of queries, keys and values."""


@dataclass(frozen=True)
class Match:
    """Two layers by name; the student's output there is compared with the teacher's."""

    student: str
    teacher: str


def match_layers(student: nn.Module, teacher: nn.Module, layers: str | Mapping[str, str] = UNIFORM) -> list[Match]:
    """Return which layers belong together.

    Args:
        student: the model that learns.
        teacher: the model that knows.
        layers: ``"uniform"`` pairs block i of the student's n with block ceil((i + 1) m / n) - 1 of the teacher's m, so
            that the last meet (blocks as ``blocks`` finds them); or patterns of the student's names to patterns of the
            teacher's, such as ``{"stage?": "stage?"}``, whose matches are paired in order.

    Raises:
        UserError: if a pattern matches nothing, the numbers differ, or a model has no blocks.

    Example:
        >>> def layers(n): return nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(n)))
        >>> [(m.student, m.teacher) for m in match_layers(layers(3), layers(6))]
        [('0', '1'), ('1', '3'), ('2', '5')]
    """
    check_layers(layers)
    if isinstance(layers, str):
        ours, theirs = _blocks("student", student), _blocks("teacher", teacher)
        if len(ours) > len(theirs):
            raise UserError(
                f"layers='uniform': the student has {len(ours)} blocks, the teacher {len(theirs)}; "
                "name the pairs, as in layers={'stage1': 'stage1'}"
            )
        last = [-(-(i + 1) * len(theirs) // len(ours)) - 1 for i in range(len(ours))]
        return [Match(name, theirs[i]) for name, i in zip(ours, last, strict=True)]
    found = []
    for pattern, other in layers.items():
        if not isinstance(pattern, str) or not isinstance(other, str):
            raise UserError(f"layers has {pattern!r}: {other!r}, expected names of layers or patterns of them")
        ours, theirs = _named("student", student, pattern), _named("teacher", teacher, other)
        if len(ours) != len(theirs):
            raise UserError(
                f"layers: {pattern!r} matches {len(ours)} layers of the student ({_some(ours)}), {other!r} "
                f"{len(theirs)} of the teacher ({_some(theirs)}); expected as many of both"
            )
        found += [Match(a, b) for a, b in zip(ours, theirs, strict=True)]
    return found


def blocks(model: nn.Module) -> list[str]:
    """Return the names of a model's blocks, in order: what its lists and sequences repeat that has layers of its own.

    Encoder layers of ``transformers``, blocks of residual networks; of nested lists, the innermost that still hold
    modules with two or more weights. A sequence of plain layers has those with weights instead.
    """
    found = list(_repeated(model, ""))
    if found:
        return found
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][:-1]


def attention_layers(block: nn.Module, kind: str) -> str:
    """Return the name within ``block`` of the linear layer that makes its queries, keys or values.

    Raises:
        UserError: if there is none by a name that families of ``transformers`` use.
    """
    called = SELF_ATTENTION[kind]
    names = [n for n, m in block.named_modules() if n.rpartition(".")[2] in called and hasattr(m, "weight")]
    if len(names) != 1:
        raise UserError(
            f"relations: {type(block).__name__} has {len(names)} layers called {' or '.join(called)}, "
            "expected one; relations need encoder layers with self-attention"
        )
    return names[0]


class FeatureRecorder:
    """Records the outputs of named modules of a model during one forward pass.

    What a later module changes in place has changed here too: name that one.

    Args:
        model: hooks are put on it until ``close``.
        names: of its modules.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._outputs: dict[str, Tensor] = {}
        self._handles = [
            model.get_submodule(name).register_forward_hook(_Keep(self._outputs, name)) for name in dict.fromkeys(names)
        ]

    def take(self) -> dict[str, Tensor]:
        """Return the outputs of the last pass by name, and forget them."""
        outputs = dict(self._outputs)
        self._outputs.clear()
        return outputs

    def __deepcopy__(self, memo: Any) -> "FeatureRecorder":
        """Return one that records nothing: a copy of the model has hooks of its own, which keep to themselves."""
        copied = FeatureRecorder.__new__(FeatureRecorder)
        copied._outputs, copied._handles = {}, []
        return copied

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._outputs.clear()


class _Keep:
    """A hook that can be pickled; a copy of the model keeps into a dictionary of its own."""

    def __init__(self, outputs: dict[str, Tensor], name: str) -> None:
        self.outputs, self.name = outputs, name

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.outputs[self.name] = features_of(output, self.name)

    def __deepcopy__(self, memo: Any) -> "_Keep":
        return _Keep({}, self.name)


def features_of(output: Any, name: str) -> Tensor:
    """Return the features in what a module returns: the tensor itself, or the first one.

    Raises:
        UserError: if there is none.
    """
    if isinstance(output, list | tuple) and output:
        output = output[0]
    if isinstance(output, Mapping):
        output = next(iter(output.values()))
    if not isinstance(output, Tensor):
        raise UserError(f"layers: {name!r} returns {type(output).__name__}, expected a tensor; name another layer")
    return output


def channels(features: Tensor) -> int:
    """Return the width of features: the channels of (batch, channels, height, width), else the last dimension."""
    return features.shape[1 if features.ndim == 4 else -1]


class Projection(nn.Linear):
    """Maps the student's width to the teacher's at every position (FitNets' regressor; 1×1 for convolutions)."""

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, channels, height, width), (batch, length, width) or (batch, width)."""
        if features.ndim == 4:
            return super().forward(features.movedim(1, -1)).movedim(-1, 1)
        return super().forward(features)


def check_shapes(loss: str, match: Match, student: Tensor, teacher: Tensor) -> None:
    """Raise ``UserError``, naming both sides, unless the features differ in width at most."""
    ours, theirs = (list(x.shape) for x in (student, teacher))
    for shape in (ours, theirs):
        if len(shape) > 1:
            del shape[1 if len(shape) == 4 else -1]
    if ours != theirs:
        raise UserError(
            f"{loss}: the student's {match.student!r} gives {tuple(student.shape)}, the teacher's {match.teacher!r} "
            f"{tuple(teacher.shape)}; only widths may differ: pair layers of equal resolution"
        )


def _blocks(role: str, model: nn.Module) -> list[str]:
    found = blocks(model)
    if not found:
        raise UserError(f"layers='uniform': {role} {type(model).__name__} has no blocks; name the pairs of layers")
    return found


def _repeated(module: nn.Module, prefix: str) -> Iterator[str]:
    listed = isinstance(module, nn.ModuleList | nn.Sequential)
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        inner = list(_repeated(child, f"{path}."))
        if inner:
            yield from inner
        elif listed and not isinstance(child, nn.ModuleList) and _weights(child) > 1 and any(child.children()):
            yield path


def _weights(module: nn.Module) -> int:
    return sum(isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) for m in module.modules())


def _named(role: str, model: nn.Module, pattern: str) -> list[str]:
    names = [name for name, _ in model.named_modules() if name]
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise UserError(f"layers: no layer of the {role} is called {pattern!r}; {did_you_mean(pattern, names)}")
    return found


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
