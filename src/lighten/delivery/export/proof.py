"""Proof of a file by running it in its runtime and comparing it with its network."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lighten.delivery.runtimes.onnx import OnnxRunner
from lighten.delivery.runtimes.runners import Runner, open_runner
from lighten.delivery.runtimes.signature import Graph
from lighten.errors import UserError
from lighten.quantization.activation_quantizers import quantizers_in
from lighten.utils.rounding import UNITS, RoundedOtherwise

MAX_FLOAT_ERROR, MAX_STEP_ERROR, MAX_INT8_ERROR = 2e-3, 0.05, 0.25
"""How far outputs may be off, relative to their size: of a float file; of an int8 file, where a few values fall on
another code, before it is warned of; and before it is taken for a wrong file, whatever rounding does to it."""
AS_ROUNDING = 2.0
"""How many times what rounding does to a network's outputs a file may be off; more is no matter of rounding."""


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return ``|found - expected| / |expected|`` in Euclidean norms; infinite where shapes or NaN differ.

    Example:
        >>> relative_error(np.array([3.0, 4.4]), np.array([3.0, 4.0]))
        0.08
    """
    if found.shape != expected.shape:
        return float("inf")
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    gap = np.where(same, 0.0, found - expected)
    if not np.isfinite(gap).all():
        return float("inf")
    size = float(np.linalg.norm(expected[np.isfinite(expected)]))
    return round(float(np.linalg.norm(gap) / max(size, 1e-6)), 12)


def doubt(name: str, error: float) -> str | None:
    """Return the line to say of an int8 file whose logits are that far off its network's; ``None`` if near enough."""
    if error <= MAX_STEP_ERROR:
        return None
    return (
        f"{name}: its logits are {error:.1%} off those of the network in PyTorch; either 8-bit weights saturate, as on "
        "x86 processors without VNNI instructions (use weight_bits=7 there), or the network chooses among nearly equal "
        "scores, in which case its metrics are what counts"
    )


def prove(
    path: Path,
    network: Graph,
    tries: Sequence[tuple[Tensor, ...]],
    *,
    quantized: bool,
    name: Path,
    advice: str = "choose another target, or leave out what it does not know",
) -> None:
    """Run a file on each of ``tries`` and compare all outputs with those of ``network`` in PyTorch.

    What the network itself cannot run, or answers by chance, is no try.

    Args:
        path: the file.
        network: what it was made of, in float32 on the CPU, fake-quantized if the file is in integers.
        tries: inputs by position.
        quantized: whether the file is.
        name: what messages call the file.
        advice: how they end.

    Raises:
        UserError: if the runtime cannot read or run the file, or it computes something else. Where the network itself
            answers otherwise when its sums are rounded otherwise, a file may be as far off as that; it is warned of.
    """
    told = ""
    with open_runner(path) as runner:
        for inputs in tries:
            expected = _answers(network, inputs)
            if expected is None:
                continue
            shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
            found = _file_answers(runner, inputs, f"{name}: inputs of {shapes} do not run; {advice}")
            error = exact = _largest(found, expected)
            if error <= (MAX_STEP_ERROR if quantized else MAX_FLOAT_ERROR):
                continue
            if isinstance(runner, OnnxRunner):
                found = _file_answers(OnnxRunner(path, exact=True), inputs, advice)
                exact = _largest(found, expected)
            most = _most(network, inputs, expected) if quantized else MAX_FLOAT_ERROR
            if exact <= most:
                told = told or _too_far(name, runner.runtime, error, exact)
            elif _by_rounding(network, inputs, expected, found, most):
                told = told or _by_chance(name, runner.runtime, exact)
            else:
                raise UserError(
                    f"{name}: inputs of {shapes} give other numbers in {runner.runtime} than in PyTorch "
                    f"({exact:.1%} off); {advice}"
                )
    if told:
        warnings.warn(told, stacklevel=5)


def _most(network: Graph, inputs: tuple[Tensor, ...], expected: Sequence[np.ndarray]) -> float:
    """Return how far an int8 file may be off: a file of another computation can hide behind coarse codes."""
    quantizers = quantizers_in(network)
    stages = [each.stage for each in quantizers]
    try:
        for each in quantizers:
            each.switch_off_()
        plain = _answers(network, inputs) if quantizers else None
    finally:
        for each, stage in zip(quantizers, stages, strict=True):
            each.stage = stage
    if plain is None:
        return MAX_INT8_ERROR
    return min(MAX_INT8_ERROR, max(MAX_STEP_ERROR, AS_ROUNDING * _largest(expected, plain)))


def _by_rounding(
    network: Graph,
    inputs: tuple[Tensor, ...],
    expected: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
    most: float,
) -> bool:
    """Return whether a file is off because the network itself answers otherwise where its sums are rounded otherwise.

    A network that picks the best of nearly equal scores does: other places, or the same in another order.
    """
    others = []
    for units in UNITS:
        with RoundedOtherwise(units):
            others.append(_outputs(network, inputs))
    if max(_largest(other, expected) for other in others) <= most:
        return False
    shown = max(_largest(other, expected, _apart) for other in others)
    return _largest(found, expected, _apart) <= max(most, AS_ROUNDING * shown)


def _apart(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the relative error where each sample's places, (batch, places, ...), may stand in another order."""
    error = relative_error(found, expected)
    if (
        found.shape != expected.shape
        or found.ndim < 3
        or not (np.isfinite(found).all() and np.isfinite(expected).all())
    ):
        return error
    places = [torch.from_numpy(each.astype(np.float64)).flatten(2) for each in (found, expected)]
    gaps = [torch.stack([_nearest(*pair) for pair in zip(*way, strict=True)]) for way in (places, places[::-1])]
    return min(error, max(float(gap.norm()) for gap in gaps) / max(float(places[1].norm()), 1e-6))


def _nearest(places: Tensor, others: Tensor) -> Tensor:
    """Return how far each of (places, values) is from the nearest of (others, values)."""
    blocks = [torch.cdist(block, others, compute_mode="donot_use_mm_for_euclid_dist") for block in places.split(1024)]
    return torch.cat([block.amin(-1) for block in blocks])


def _by_chance(name: Path, runtime: str, error: float) -> str:
    return (
        f"{name}: {runtime} is {error:.1%} off the network here, as PyTorch itself is where its sums are rounded "
        "otherwise: the network chooses among nearly equal scores; compare accuracies before it is used"
    )


def _too_far(name: Path, runtime: str, error: float, exact: float) -> str:
    cause = "this processor's sums of 8-bit products saturate; use weight_bits=7"
    return f"{name}: {runtime} is {error:.1%} off the network here: " + (
        cause if exact < MAX_STEP_ERROR else "its integer kernels round otherwise; compare accuracies before it is used"
    )


def _largest(
    found: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    error: Callable[[np.ndarray, np.ndarray], float] = relative_error,
) -> float:
    if len(found) != len(expected):
        return float("inf")
    return max((error(*pair) for pair in zip(found, expected, strict=True)), default=0.0)


def _answers(network: Graph, inputs: tuple[Tensor, ...]) -> list[np.ndarray] | None:
    try:
        first, again = (_outputs(network, inputs) for _ in range(2))
    except Exception:  # whatever a forward raises
        return None
    same = all(np.array_equal(np.nan_to_num(a), np.nan_to_num(b)) for a, b in zip(first, again, strict=True))
    return first if same else None


@torch.no_grad()
def _outputs(network: Graph, inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    return [x.float().numpy() for x in network(*(x.clone() for x in inputs))]


def _file_answers(runner: Runner, inputs: tuple[Tensor, ...], line: str) -> list[np.ndarray]:
    try:
        return runner.run_all(runner.feed((inputs, {})))
    except UserError as error:
        raise UserError(line) from error
