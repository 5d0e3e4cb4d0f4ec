"""Tracing of a model's graph with channel labels."""

import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.traceback import preserve_node_meta
from torch.utils._pytree import tree_leaves

from lighten.errors import first_line
from lighten.pruning.answers import answers_of
from lighten.pruning.attributes import SizeRead
from lighten.pruning.labels import Labels, compact, rows_along, spread, varies
from lighten.pruning.outputs import outputs_marked
from lighten.pruning.parts import PACKAGE, NotTracedError, failing_part
from lighten.pruning.tags import Read, Reads, tagged
from lighten.pruning.weights import Derived, Weight
from lighten.utils.inputs import Call, leaves_of, map_tensors
from lighten.utils.preserve import preserved, random_state_kept

_MASKS_AS_GIVEN = patch.object(  # else torch looks into a mask's values to find out whether a shortcut would do
    torch.nn.modules.transformer, "_detect_is_causal_mask", lambda mask, is_causal=None, size=None: is_causal is True
)
MAX_ELEMENTS = 2**22
"""Parameters that the forward uses element by element are labelled up to this size."""


@dataclass
class Axis:
    """The labels along one dimension of a parameter or buffer.

    ``role`` says what removing a channel means there: ``filter`` (a producer's weight, which is scored), ``bias``,
    ``norm`` and ``shift`` (a norm's weight and bias), ``scale``, ``input`` (a consumer's weight), ``statistic`` (a
    buffer: cut, never zeroed), ``direction`` (likewise a parameter, whose size another one sets), ``live`` (no
    tensor's: what a norm as a whole takes, see ``regions.py``) or ``output`` (no tensor's: what a module without
    weights computes, see ``outputs.py``).
    """

    labels: Tensor
    role: str


@dataclass(frozen=True)
class Geometry:
    """The sizes of a convolution, or of a linear layer, whose places are its rows and whose kernel is empty."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    kernel: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates of one layer or product, and the labels along each dimension that they are in step with.

    Those of a layer are its outputs', then its inputs'; ``geometry`` is what a runtime is timed on.
    """

    layer: str
    macs: int
    along: tuple[Tensor, ...]
    geometry: Geometry | None = None


class Tracer:
    """The state of one pass: labels, and the axes of parameters that carry them.

    Attributes:
        labels: the sets of labels.
        axes: by parameter name and dimension, in the order in which the forward reaches them.
        graph: what is followed.
        modules: by every name that they have.
        parameters: names of those, among the tensors that the forward uses.
        tensors: parameters, buffers and other tensors that modules keep, by their first names.
        constants: tensors of numbers in the forward, by placeholder.
        unprunable: layers that cannot be cut whatever their labels, and why.
        work: what the forward computes, in its order.
        parts: where the forward cuts channels into equal parts: labels (parts, positions).
        strided: labels of channels whose number must stay a multiple of what it is one of, for a kernel's strides.
        reads: what the forward's calls were given as sizes.
        sizes: those of them that come from attributes and shapes, with the labels that they count.
        shapes: labels along the dimensions that formulas of sizes speak of, (size, …), by the name there.
    """

    def __init__(self, exported: ExportedProgram, model: nn.Module, reads: Reads) -> None:
        self.labels = Labels()
        self.axes: dict[tuple[str, int], Axis] = {}
        self.unprunable: dict[str, str] = {}
        self.work: list[Work] = []
        self.parts: list[Tensor] = []
        self.strided: list[Tensor] = []
        self.reads = reads
        self.sizes: list[SizeRead] = []
        self.shapes: dict[str, Tensor] = {}
        self._slices: dict[tuple[Node, int], tuple[Tensor, set[tuple[int, int]]]] = {}
        self._elements: dict[str, tuple[Weight, Tensor]] = {}
        self._used: dict[str, Tensor] = {}
        self._later: list[tuple[Read, Weight, int]] = []
        self.parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self._whole: list[tuple[str, str]] = []
        self._weights, self.tensors = _weights(exported, model)
        self.modules = dict(model.named_modules(remove_duplicate=False))
        made = exported.graph_signature.inputs_to_lifted_tensor_constants.items()
        self.constants = {name: v for name, key in made if isinstance(v := exported.constants[key], Tensor)}
        self._inputs = set(exported.graph_signature.user_inputs)
        self.graph = exported.graph

    def attach(self, weight: Weight, dim: int, labels: Tensor, role: str) -> Tensor:
        """Say that ``labels`` run along ``dim`` of ``weight``; return them, united with what was there."""
        if isinstance(weight, Derived):
            return self._attach_members(weight, dim, labels, role)
        stretch = weight.stretch(dim)
        if stretch is None:
            return labels
        base, start = stretch
        if (weight.name, base) not in self.axes:
            part = weight.shape[dim] < weight.whole[base]
            self.axes[weight.name, base] = Axis(self.labels.fresh(weight.whole[base]) if part else labels, role)
        own = self.axes[weight.name, base].labels[start : start + weight.shape[dim]]
        self.labels.unite(own, labels)
        return own

    def _attach_members(self, weight: Derived, dim: int, labels: Tensor, role: str) -> Tensor:
        if not weight.members.get(dim) and weight.shape[dim] > 1:
            self.labels.freeze(labels, f"its weight is computed from {weight.name} as a whole")
        for member in weight.members.get(dim, ()):
            self.attach(member.weight, member.dim, labels.repeat_interleave(member.times), member.role or role)
        return labels

    def attach_live(self, module: str, dim: int, labels: Tensor) -> None:
        """Say that ``labels`` run along ``dim`` of what a norm takes, which runs on the channels that are left."""
        axis = self.axes.setdefault((module, dim), Axis(labels, "live"))
        self.labels.unite(axis.labels, labels)

    def new_labels(self, weight: Weight, dim: int) -> Tensor:
        """Return the labels of a producer's filters: new, or those of an earlier call of the same layer."""
        known = self.axis(weight, dim)
        return self.attach(weight, dim, self.labels.fresh(weight.shape[dim]), "filter") if known is None else known

    def axis(self, weight: Weight, dim: int) -> Tensor | None:
        """Return the labels along ``dim`` of ``weight``, where there are any."""
        for member in weight.members.get(dim, ()) if isinstance(weight, Derived) else ():
            return None if (own := self.axis(member.weight, member.dim)) is None else own[:: member.times]
        base, start = weight.stretch(dim) or (None, 0)
        axis = None if base is None else self.axes.get((weight.name, base))
        return None if axis is None else axis.labels[start : start + weight.shape[dim]]

    def several(self, labels: Tensor, dims: Sequence[int]) -> bool:
        """Say whether filters of one layer lie side by side in dimensions other than ``dims`` too, as heads do."""
        small = compact(labels)
        for dim in dims:
            small = small.narrow(dim, 0, 1)
        roots = torch.unique(self.labels.find(small))
        filters = (axis.labels for axis in self.axes.values() if axis.role == "filter")
        return len(roots) > 1 and any(int(torch.isin(roots, self.labels.find(own)).sum()) > 1 for own in filters)

    def elements(self, weight: Weight) -> Tensor:
        """Return one label per element, for a parameter that the forward uses as it is."""
        if weight.name not in self._elements:
            count = torch.Size(weight.whole).numel()
            if count > MAX_ELEMENTS:
                return self.labels.fixed(weight.shape, f"{weight.name} is used whole and is too large to follow")
            whole = Weight.of(weight.name, weight.whole)
            self._elements[weight.name] = whole, self.labels.fresh(count).reshape(weight.whole)
            self._used[weight.name] = torch.zeros(weight.whole, dtype=torch.bool)
        self._used[weight.name].as_strided(weight.shape, weight.strides, weight.offset).fill_(True)
        labels = self._elements[weight.name][1]
        if weight.picked:
            self.labels.unite(labels, labels[:1].expand_as(labels))
        return labels.as_strided(weight.shape, weight.strides, weight.offset)

    def computed(self, module: str, shape: torch.Size) -> Tensor:
        """Return one label per element of what a module puts out that has no weights."""
        if shape.numel() > MAX_ELEMENTS:
            return self.labels.fixed(shape, f"{module} puts out more than can be followed")
        labels = self.labels.fresh(shape.numel()).reshape(shape)
        self._elements[f"{module}#{len(self._elements)}"] = Weight.of(module, tuple(shape)), labels
        return labels

    def unclaimed(self, roots: Tensor) -> bool:
        """Say whether these are elements of parameters, each of them yet tied to other elements at most."""
        others = torch.ones(self.labels.size, dtype=torch.bool)
        for _, labels in self._elements.values():
            others[labels.flatten()] = False
        return not bool(others[roots].any() or torch.isin(self.labels.find(torch.nonzero(others)), roots).any())

    def freeze_weight(self, weight: Weight, why: str) -> None:
        """Freeze every axis that ``weight`` has or will get."""
        if not self.labels.unread:
            self._whole += [(name, why) for name in (weight.name, *weight.others)]

    def placeholder_labels(self, node: Node) -> Weight | Tensor | None:
        """Return a parameter, or the labels of an input or a constant."""
        if node.name in self._weights:
            return self._weights[node.name]
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return None
        what = "the network's input" if node.name in self._inputs else "a constant of the forward"
        return self.labels.fixed(value.shape, f"is tied to {what}")

    def note_slice(self, source: Node, dim: int, labels: Tensor, start: int, end: int) -> None:
        """Note that the forward takes this stretch of ``dim``: together with others it may be one of equal parts."""
        self._slices.setdefault((source, dim), (labels, set()))[1].add((start, min(end, labels.size(dim))))

    def note_size(self, read: Read, labels: Tensor | Weight, dim: int, *, backwards: bool = False) -> None:
        """Note that ``read`` says how many places there are along ``dim`` of ``labels``, or of a parameter."""
        if isinstance(labels, Weight):
            self._later.append((read, labels, dim))
        else:
            self.sizes.append(SizeRead(read.formula, rows_along(labels, dim), backwards))

    def note_shape(self, node: Node, values: Any) -> None:
        """Note the labels of what a call puts out, if its sizes are asked for."""
        number = self.reads.number(node)
        for at, labels in enumerate(values if isinstance(values, list | tuple) else (values,)):
            shape = None if number is None else self.reads.shapes.get((number, at))
            if isinstance(labels, Tensor) and labels.shape == shape:  # a call may be of several operators
                for dim in range(labels.ndim):
                    self.shapes[f"@{number}.{at}:{dim}"] = rows_along(labels, dim)

    def of_channels(self, read: Read) -> bool:
        """Say whether a size is computed from an attribute, or is that of a dimension along which channels lie."""
        if read.formula.operation not in self.shapes:
            return read.formula.of_attributes
        found = self.labels.find(self.shapes[read.formula.operation])
        return len(found) > 1 and sum(len(torch.unique(row)) for row in found) == len(torch.unique(found))

    def mark_output(self, values: Any) -> None:
        """Freeze whatever the network puts out."""
        for value in tree_leaves(values):
            if isinstance(value, Weight):
                self.freeze_weight(value, "is the network's output")
            elif isinstance(value, Tensor):
                self.labels.freeze(value, "is the network's output")

    def finalize(self) -> None:
        """Turn the element labels of each parameter into an axis, or freeze them where they form none."""
        for one, other in (pair for both in self.reads.equal for pair in (both, both[::-1])):
            if other.operation in self.shapes and one.operation not in self.shapes:
                self.sizes.append(SizeRead(one, self.shapes[other.operation]))
        for (_, dim), (labels, stretches) in self._slices.items():
            size = labels.size(dim) // len(stretches)
            if len(stretches) > 1 and stretches == {(at, at + size) for at in range(0, labels.size(dim), size)}:
                self.parts.append(self.labels.unite_along(labels, dim).reshape(len(stretches), -1))
        for key, (weight, labels) in self._elements.items():
            if key in self._used and not bool(self._used[key].all()):
                self.labels.tie_idle(labels, self._used[key])
            found = spread(self.labels.find(labels))
            dims = [dim for dim in range(found.ndim) if varies(found, dim)]
            taken = [(dim, len(axis.labels)) for (name, dim), axis in self.axes.items() if name == weight.name]
            output = weight.name not in self.tensors  # of a module, at each of its calls
            if len(dims) == 1 and (not taken or (output and taken == [(dims[0], found.size(dims[0]))])):
                role = "output" if output else "scale" if weight.name in self.parameters else "statistic"
                self.attach(weight, dims[0], compact(found).flatten(), role)
            else:
                self.labels.freeze(found, f"is tied to {weight.name}, which does not split into channels")
                self.freeze_weight(weight, f"{weight.name} is also used element by element")
        for read, weight, dim in self._later:
            if (own := self.axis(weight, dim)) is not None:
                self.sizes.append(SizeRead(read.formula, own[:, None]))
        for name, why in self._whole:
            for axis in (axis for (tensor, _), axis in self.axes.items() if tensor == name):
                self.labels.freeze(axis.labels, why)


def export(model: nn.Module, call: Call) -> tuple[ExportedProgram, Reads]:
    """Return the graph of ``model`` in eval mode, and what its operators read from attributes.

    A forward may keep what it computes: give a copy.

    Raises:
        NotTracedError: if ``torch.export`` cannot trace it; the submodule and the line are named.
    """
    try:
        with warnings.catch_warnings(), torch.no_grad(), random_state_kept(model), _MASKS_AS_GIVEN:
            warnings.simplefilter("ignore")
            args, kwargs = map_tensors(Tensor.clone, call)
            model.register_forward_hook(lambda model, args, output: answers_of(model, output, call))
            with preserved(model), suppress(Exception):
                leaves_of(model.eval()(*args, **kwargs))  # a dataclass that it returns is known from here on
            try:
                with preserved(model), outputs_marked(model), tagged(model) as reads, preserve_node_meta():
                    return torch.export.export(model.eval(), call[0], call[1], strict=False), reads
            except Exception as error:  # the forward does not take its integers with tags, or cannot be traced at all
                from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode  # loaded by now

                if isinstance(error, GuardOnDataDependentSymNode):
                    raise
                without = Reads()
                without.failure = first_line(error)
                return torch.export.export(model.eval(), call[0], call[1], strict=False), without
    except Exception as error:
        raise NotTracedError(
            f"torch.export cannot trace {failing_part(model, error)}: {first_line(error)}; "
            "change that forward, or prune a part of the model that can be traced"
        ) from error


def location(node: Node) -> str:
    """Return the line of a forward that a node comes from, and the module: ``model.py:12 in layer1.0``."""
    library = str(Path(torch.__file__).parent)
    frames = re.findall(r'File "(.+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [f"{Path(path).name}:{line}" for path, line in frames if not path.startswith((library, PACKAGE))]
    parts = own[-1:] + [name for name in [module_of(node)] if name]
    return " in ".join(parts) or "in the forward"


def module_of(node: Node) -> str:
    """Return the dotted name of the innermost module whose forward made the node."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0] if stack else ""


def _weights(exported: ExportedProgram, model: nn.Module) -> tuple[dict[str, Weight], dict[str, Tensor]]:
    """Return the tensors that modules keep, by placeholder and by name; tied ones go by their first name."""
    signature = exported.graph_signature
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    for named in (model.named_parameters, model.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            tensors[name] = tensor
            first.setdefault(id(tensor), name)
    for name in signature.lifted_tensor_constants:
        module, _, key = name.rpartition(".")
        with suppress(AttributeError):
            kept = vars(model.get_submodule(module)).get(key)
            if isinstance(kept, Tensor):
                tensors[name] = kept
                first.setdefault(id(kept), name)
    targets = {
        **signature.inputs_to_parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants,
    }  # fmt: skip
    weights = {
        placeholder: Weight.of(first[id(tensors[name])], tuple(tensors[name].shape))
        for placeholder, name in targets.items()
        if name in tensors
    }
    return weights, {first[id(tensor)]: tensor for tensor in tensors.values()}
