"""Sensitivity of layers to int8, and the choice of those that stay in floating point."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lighten.errors import UserError
from lighten.quantization.activation_quantizers import QuantizedSubset, quantizers_of
from lighten.quantization.calibrate import calibrate_
from lighten.quantization.insert import quantize_
from lighten.quantization.layers import QuantizedEmbedding, QuantizedLayer
from lighten.quantization.settings import POST_TRAINING_RANGES, QuantizeSettings, check_drop
from lighten.tasks import task_of
from lighten.tasks.scorer import scorer_of
from lighten.tasks.task import Task
from lighten.utils.batch import BatchFormat, Roles
from lighten.utils.clone import clone, fix_weights_
from lighten.utils.inputs import Call, logits_of, run

SCHEMA = 1


@dataclass(frozen=True)
class LayerSensitivity:
    """What int8 costs in one layer alone.

    Attributes:
        name: of the layer.
        kind: its class.
        error: relative squared error of the logits, ``|quantized - float|^2 / |float|^2``.
        drop: loss of accuracy, in [-1, 1], or as the task defines it.
        kept: ``"float32"`` if it is to be left out of int8, else ``None``.
    """

    name: str
    kind: str
    error: float
    drop: float
    kept: str | None = None


@dataclass(frozen=True)
class Sensitivity:
    """A ranking of layers, the most sensitive first, and what was made of it.

    Attributes:
        layers: most sensitive first.
        samples: how many samples it was measured on.
        baseline: the leading metric in floating point.
        tolerated: the drop that was allowed.
        predicted: the drop that is left, on the same samples.
        seconds: what all of it took.
        metric: which one leads.
    """

    layers: tuple[LayerSensitivity, ...]
    samples: int
    baseline: float
    tolerated: float
    predicted: float
    seconds: float
    metric: str = "accuracy"

    @property
    def exclude(self) -> list[str]:
        """Names of the layers to leave in floating point: what ``quantize_(exclude=)`` takes."""
        return [layer.name for layer in self.layers if layer.kept]

    def as_json(self) -> dict[str, Any]:
        """Return it as plain Python, the content of ``sensitivity.json``."""
        return {"schema": SCHEMA, **asdict(self), "layers": [asdict(x) for x in self.layers]}


def find_float_layers(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    max_drop: float,
    ranges: str = POST_TRAINING_RANGES,
    weight_bits: int = QuantizeSettings.weight_bits,
    exclude: Sequence[str] = (),
    batch: Roles | None = None,
    task: str | Task = "classification",
) -> Sensitivity:
    """Find the fewest layers to leave in floating point so that quality drops by ``max_drop`` at most.

    Each layer is quantized alone (weights, input, output), and layers are ranked by the error of the logits. Then the
    most sensitive ones are left in floating point, as few as the accepted drop allows, found by bisection; each trial
    is quantized and calibrated again. This takes one forward pass over ``batches`` for each layer, and a few more: with
    a few hundred samples, less time than an epoch.

    Args:
        model: a trained float model; not changed.
        batches: ``(inputs, labels)`` or dicts with ``labels``, a few hundred samples in all; they also calibrate.
        max_drop: accepted loss, a share: for accuracy, 0.01 is one point (:meth:`Task.drop`).
        ranges: as in ``quantize_``.
        weight_bits: as in ``quantize_``.
        exclude: layers that stay in floating point in any case.
        batch: roles of the parts of other batches, as in ``calibrate_``.
        task: its leading metric is the one that may drop.

    Raises:
        UserError: if ``max_drop`` is not a share, the data is empty or unlabelled, or ``quantize_`` refuses the model.
    """
    check_drop(max_drop)
    begun = time.perf_counter()
    form = BatchFormat(batch)
    given = list(batches)
    data = [(parts.call, parts.labels) for parts in map(form.labelled, given)]
    if not data:
        raise UserError("sensitivity needs at least one batch, none was given")
    model = clone(model).eval()
    fix_weights_(model)
    task = task_of(task)
    floating = _logits(model, data)
    labels = torch.cat([torch.as_tensor(y) for _, y in data]).to(floating.device)
    try:
        task.check_answers(floating, task.check_labels(labels))
    except UserError as error:
        raise UserError(f"sensitivity: {error}") from error
    baseline = _metrics(task, floating, labels)

    def quantized(left: Sequence[str]) -> nn.Module:
        copied, (args, kwargs) = clone(model), data[0][0]
        quantize_(
            copied, example_input=kwargs or args, exclude=[*exclude, *left], ranges=ranges, weight_bits=weight_bits
        )
        return calibrate_(copied, given, batch=batch)

    whole, judged = quantized([]), task.to_compare(floating)
    ranking = [
        LayerSensitivity(
            name,
            type(layer).__name__,
            _error(task.to_compare(logits), judged),
            task.drop(baseline, _metrics(task, logits, labels)),
        )
        for name, layer, logits in _one_by_one(whole, data)
    ]
    ranking.sort(key=lambda layer: (-layer.error, layer.name))

    def drop(count: int) -> float:
        if count == len(ranking):
            return 0.0
        left = [layer.name for layer in ranking[:count]]
        return task.drop(baseline, _metrics(task, _logits(quantized(left) if left else whole, data), labels))

    low, high, drops = 0, len(ranking), {0: drop(0)}
    if drops[0] <= max_drop:
        high = 0
    while low < high:  # the smallest count that is good enough, as if drops fell steadily
        middle = (low + high) // 2
        drops.setdefault(middle, drop(middle))
        low, high = (low, middle) if drops[middle] <= max_drop else (middle + 1, high)
    if high == len(ranking) and ranking:
        raise UserError(
            f"max_drop={max_drop}: not reached with a single layer in int8; allow more, or train with Quantize"
        )
    chosen = tuple(
        LayerSensitivity(x.name, x.kind, x.error, x.drop, "float32" if i < high else None)
        for i, x in enumerate(ranking)
    )
    seconds = time.perf_counter() - begun
    leads = baseline[task.metric]
    return Sensitivity(chosen, len(labels), leads, max_drop, drops.get(high, drop(high)), seconds, task.metric)


def _one_by_one(model: nn.Module, data: Sequence[tuple[Call, Any]]) -> Iterable[tuple[str, nn.Module, Tensor]]:
    """Yield each layer with the logits of the model in which it alone is quantized."""
    quantizers = quantizers_of(model)
    try:
        for name, layer in model.named_modules():
            if isinstance(layer, QuantizedLayer):
                output = layer.quantizers.output
                locations = {layer.quantizers.input_location} | ({output.index} if output is not None else set())
            elif isinstance(layer, QuantizedEmbedding):
                locations = set()
            else:
                continue
            quantizers.subset = QuantizedSubset(frozenset(locations), frozenset([layer]))
            yield name, layer, _logits(model, data)
    finally:
        quantizers.subset = None


@torch.no_grad()
def _logits(model: nn.Module, data: Sequence[tuple[Call, Any]]) -> Tensor:
    return torch.cat([logits_of(run(model, call)).float() for call, _ in data])


def _metrics(task: Task, logits: Tensor, labels: Tensor) -> dict[str, float]:
    scorer = scorer_of(task, task.outputs_of(logits), logits.device)
    scorer.update(*task.rows(logits, labels))
    return {name: float(value) for name, value in (scorer.compute() or {}).items()}


def _error(logits: Tensor, reference: Tensor) -> float:
    return float((logits - reference).double().square().sum() / reference.double().square().sum().clamp_min(1e-30))
