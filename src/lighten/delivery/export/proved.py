"""Files that are traced with the dimensions that a model leaves open, or that were asked for, and proved by running."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lighten.delivery.export.asked import as_traced, asked, fixed, only, other_sizes
from lighten.delivery.export.checks import drop_checks_, open_lengths
from lighten.delivery.export.dimensions import (
    BATCH,
    TRACED,
    Open,
    as_dynamic_shapes,
    batch_size,
    candidates,
    other_lengths,
    with_samples,
)
from lighten.delivery.export.place import fixed_sizes
from lighten.delivery.export.prepare import Source
from lighten.delivery.export.proof import prove
from lighten.delivery.export.request import Request
from lighten.delivery.runtimes.packages import is_installed
from lighten.delivery.runtimes.quiet import quiet
from lighten.delivery.runtimes.signature import Graph, parameters_of
from lighten.errors import UserError, one_line
from lighten.quantization.activation_quantizers import ActivationQuantizers
from lighten.quantization.fake_quant import forbidden
from lighten.quantization.integer_layers import QdqFormat
from lighten.utils.targets import TARGETS

Convert = Callable[[Graph, tuple[Tensor, ...], Open], bytes]
"""Makes a file's bytes of a graph, for example inputs, with some of their dimensions open."""


def proved_bytes(source: Source, request: Request, file: Path, convert: Convert) -> bytes:
    """Return a file that computes what ``source`` does, with as many dimensions open as it allows, or as are asked.

    Where nothing is said of the batch and it cannot be open, the file takes as many samples a call as the example has,
    and a warning says so.

    Args:
        source: what is exported.
        request: what was asked.
        file: where to put it, to be run.
        convert: makes it.

    Raises:
        UserError: if no graph can be made of it, or it fixes what is asked to be open.
    """
    attempt = _Attempt(source, request, file, convert)
    if request.dynamic is not None:
        return _as_asked(attempt)
    inputs = with_samples(source.inputs, TRACED if request.batch is None else request.batch)
    closed: Open = [{} for _ in inputs]
    errors: list[Exception] = []
    for dimensions in candidates(source.network, inputs) if request.batch is None else [closed]:
        others = [with_samples(inputs, size) for size in (1, 3)] if any(dimensions) else []
        try:
            return attempt(inputs, dimensions, others + other_lengths(inputs, dimensions))
        except Exception as error:  # exporters' exceptions share no base class
            errors.append(error)
    if request.batch is not None:
        raise errors[-1]
    return _with_fixed_batch(attempt, closed, errors[-1])


def traced_program(graph: Graph, inputs: tuple[Tensor, ...], dimensions: Open) -> torch.export.ExportedProgram:
    """Return the program of a graph's forward.

    Raises:
        UserError: if it lacks operators for an activation that the network quantizes.
        ValueError: if the forward's code does not leave an open size open.
    """
    with fixed_sizes() as places, open_lengths(graph):
        try:
            program = torch.export.export(graph, inputs, dynamic_shapes=(as_dynamic_shapes(dimensions),), strict=False)
        except Exception as error:  # torch's own, which share no base class
            if "specialized" not in str(error):
                raise
            where = places[-1] if places else ""
            raise ValueError(f"the forward's code takes the size for a constant{where}") from None
    drop_checks_(program.graph)
    lost = [name for m in graph.modules() if isinstance(m, ActivationQuantizers) for name in m.unwritten()]
    if lost:
        raise UserError(
            f"the traced forward does not quantize {', '.join(lost)}, as the network does: it takes another way "
            "through the code; give an example_input like those it was trained on"
        )
    return program


class _Attempt:
    """Writes a file and runs it on its inputs, and on others."""

    def __init__(self, source: Source, request: Request, file: Path, convert: Convert) -> None:
        self.source, self.request, self.file, self.convert = source, request, file, convert
        self.graph = source.converted(QdqFormat())
        self.runtime = next(target.runtime for target in TARGETS.values() if target.suffix == file.suffix)

    def __call__(self, inputs: tuple[Tensor, ...], dimensions: Open, others: Sequence[tuple[Tensor, ...]]) -> bytes:
        content = self.convert(self.graph, inputs, dimensions)
        self.file.write_bytes(content)
        if is_installed(self.runtime):
            tries = [inputs, *others]
            prove(self.file, self.source.network, tries, quantized=self.source.quantized, name=self.request.path)
        return content


def _as_asked(attempt: _Attempt) -> bytes:
    source, request = attempt.source, attempt.request
    assert request.dynamic is not None
    names, aliases = attempt.graph.inputs, parameters_of(source.model, source.call)
    inputs = source.inputs if request.batch is None else with_samples(source.inputs, request.batch)
    dimensions = asked(request.dynamic, names, aliases, inputs, request.batch)
    said = {name for own in request.dynamic.values() for name in own.values()}
    for name in said:
        other_sizes(source.network, names, inputs, only(dimensions, [name]))
    try:
        others = other_sizes(source.network, names, inputs, dimensions)
        return attempt(as_traced(inputs, dimensions), dimensions, others)
    except Exception as error:  # exporters' exceptions share no base class
        for name in sorted(said):
            _check_open(attempt, inputs, only(dimensions, [name]), name)
        if BATCH in said or dimensions == only(dimensions, said):
            raise
        return _with_fixed_batch(attempt, only(dimensions, said), error)


def _check_open(attempt: _Attempt, inputs: tuple[Tensor, ...], dimensions: Open, name: str) -> None:
    """Raise ``UserError`` if the graph cannot leave this name alone open."""
    try:
        with quiet(), forbidden(), torch.no_grad():
            traced_program(attempt.graph, as_traced(inputs, dimensions), dimensions)
    except UserError:
        raise
    except Exception as error:  # whatever a forward raises
        raise fixed(attempt.graph.inputs, inputs, dimensions, name, one_line(error, 150)) from None


def _with_fixed_batch(attempt: _Attempt, dimensions: Open, error: Exception) -> bytes:
    """Return a file for as many samples as the example has.

    Args:
        attempt: with an open batch it has failed.
        dimensions: what else is open.
        error: that has come of it; raised where the batch is not to blame.
    """
    source, size = attempt.source, batch_size(attempt.source.inputs)
    try:
        others = other_sizes(source.network, attempt.graph.inputs, source.inputs, dimensions)
        content = attempt(as_traced(source.inputs, dimensions), dimensions, others)
    except Exception:  # as above
        raise error from None
    warnings.warn(
        f"{attempt.request.path}: {type(source.model).__name__} does not take any batch size ({one_line(error, 150)}); "
        f"the file takes {size} a call, as the example has; give batch= for another number",
        stacklevel=2,
    )
    return content
