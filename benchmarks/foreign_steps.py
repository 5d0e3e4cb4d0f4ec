"""What each network of ``foreign.py`` goes through, and when that is right."""

import contextlib
import copy
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from foreign_networks import build
from foreign_oracles import gap, rounding_error, state_of, tensors_of
from foreign_vision import Batch
from torch import Tensor, nn

from lighten import calibrate_, export_onnx, mask_, plan_pruning, quantize_, shrink
from lighten.utils.inputs import logits_of

STEPS = ("prune", "float file", "insert", "int8", "int8 file", "pruned int8")
BATCHES = (1, 2, 5)
CALIBRATION = 4
EXACT, FLOAT_FILE, INT8_FILE = 1e-6, 1e-3, 0.02
"""What outputs may differ by, relative: of masked and cut in float64, of a float file, of an int8 file."""

SAME_NOISE = 1.5
"""An int8 file may differ from the fake-quantized network by so many times what rounding does to the outputs.

A sum that another kernel adds up in another order falls on the other side of a code's edge here and there; a deep
network of random weights makes of one such step as much as of all rounding together.
"""

SMALL, ILL_CONDITIONED = 0.05, 4
"""An int8 error above both is a fault: the first, and so many times what rounding does by itself."""


class WrongError(Exception):
    """Two that must be equal are not; the message is the figure."""


class Survey:
    """One network on its way through the steps; each outcome is sent as soon as it is known."""

    def __init__(self, name: str, send: Callable[[str, Any], None]) -> None:
        self.send, self.figures = send, {}
        self.network, self.batch, self.input = build(name)
        self.scratch = Path(tempfile.mkdtemp(prefix="foreign-"))
        size = sum(p.numel() for p in self.network.parameters())
        send("network", {"class": type(self.network).__name__, "input": self.input, "parameters": size})

    def prune(self) -> str:
        """Plan, mask, shrink; say what share of the weights is left."""
        network, example = self.network, self.batch(2)
        with self._unchanged(network):
            plan = plan_pruning(network, example, amount=0.5)
        masked, small = copy.deepcopy(network), None
        mask_(masked, plan)
        with self._unchanged(network):
            small = shrink(network, plan)
        self.small = small
        kept = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in network.parameters())
        batch = self._cast(self.batch(3), torch.float64)
        try:
            pair = [call(copy.deepcopy(m).double(), batch) for m in (masked, small)]
            self._check("masked and cut", gap(*pair), EXACT)
        except (RuntimeError, TypeError):  # some forwards are of float32 alone
            batch = self.batch(3)
            self._check("masked and cut", gap(call(masked, batch), call(small, batch)), FLOAT_FILE)
        saved = f"{100 * plan.saved['macs']:.0f} % of MACs saved"
        return f"right: {100 * kept:.0f} % of the weights, {saved}"

    def float_file(self) -> str:
        """Export the network as it is, run the file."""
        return self._file(self.network, self.network, "float.onnx", FLOAT_FILE)

    def insert(self) -> str:
        """Put fake-quantizers in; off, they must not be noticed."""
        self.quantized = self._insert(self.network)
        return "right"

    def int8(self) -> str:
        """Calibrate; say what int8 changes."""
        return self._calibrate(self.quantized, self.network)

    def int8_file(self) -> str:
        """Export what was calibrated, run the file."""
        return self._file(self.quantized, self.network, "int8.onnx", INT8_FILE)

    def pruned_int8(self) -> str:
        """Take the cut network through the last three."""
        quantized = self._insert(self.small)
        error = self._calibrate(quantized, self.small)
        return f"{error}, {self._file(quantized, self.small, 'both.onnx', INT8_FILE)}".replace(", right:", ", file")

    def _insert(self, network: nn.Module) -> nn.Module:
        quantized = copy.deepcopy(network)
        quantize_(quantized, example_input=self.batch(2))
        batch = self.batch(3)
        self._check("quantizers off, eval", gap(call(quantized, batch), call(network, batch)), EXACT)
        try:
            expected = _trained(copy.deepcopy(network), batch)
        except Exception:
            return quantized  # a network that does not train on such inputs by itself, such as a norm of one number
        found = _trained(copy.deepcopy(quantized), batch)
        for what in expected:
            self._check(f"quantizers off, training, {what}", gap(found[what], expected[what]), 10 * EXACT)
        return quantized

    def _calibrate(self, quantized: nn.Module, network: nn.Module) -> str:
        batches = [self.batch(2) for _ in range(CALIBRATION)]
        given = [b if isinstance(b, dict | tuple) else (b, None) for b in batches]
        calibrate_(quantized, given, ranges="min_max")  # of so few values, a mean of extremes cuts off some
        batch = self.batch(4)
        error = gap(call(quantized, batch), call(network, batch))
        plain = rounding_error(network, [*batches, batch], call)
        if error > max(SMALL, ILL_CONDITIONED * plain):
            raise WrongError(f"int8 is {error:.3g} off float, rounding alone {plain:.3g}")
        return f"right: {error:.3f} (rounding alone {plain:.3f})"

    def _file(self, network: nn.Module, of: nn.Module, name: str, tolerance: float) -> str:
        import onnxruntime

        path, example = self.scratch / name, self.batch(2)
        with self._unchanged(network):
            export_onnx(network, example, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        worst = 0.0
        for samples in BATCHES:
            batch, outputs = self.batch(samples), len(session.get_outputs())
            expected = _expected(network, batch, outputs)
            found = gap(_run(session, batch), expected)
            noise = gap(expected, _expected(of, batch, outputs)) if of is not network else self._float_noise(batch)
            self._check(f"{name}, batch of {samples}", found, max(tolerance, SAME_NOISE * noise))
            worst = max(worst, found)
        return f"right: {worst:.1g}"

    def _float_noise(self, batch: Batch) -> float:
        """Return what float32 itself does to the outputs; random weights make much of it in some deep networks."""
        try:
            exact = call(copy.deepcopy(self.network).double(), self._cast(batch, torch.float64))
        except (RuntimeError, TypeError):
            return 0.0
        return gap(call(self.network, batch), exact)

    @staticmethod
    def _cast(batch: Batch, dtype: torch.dtype) -> Batch:
        cast = lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x  # noqa: E731
        return torch.utils._pytree.tree_map(cast, batch)

    @staticmethod
    def _check(what: str, found: float, most: float) -> None:
        if not found <= most:
            raise WrongError(f"{what}: {found:.3g}")

    @staticmethod
    @contextlib.contextmanager
    def _unchanged(network: nn.Module) -> Any:
        before, dice = state_of(network), (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())  # noqa: NPY002
        try:
            yield
        finally:
            after = state_of(network)
            if before != after:
                changed = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
                raise WrongError(f"the user's network changed: {', '.join(sorted(changed)[:3])}")
            now = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1])  # noqa: NPY002
            if not torch.equal(dice[0], now[0]) or dice[1] != now[1] or (dice[2] != now[2]).any():
                raise WrongError("random state changed")


def call(network: nn.Module, batch: Batch) -> list[Tensor]:
    """Return all tensors that the network puts out, without gradients, in its mode."""
    torch.manual_seed(1)
    with torch.no_grad():
        return tensors_of(_output(network, batch))


def _output(network: nn.Module, batch: Batch) -> Any:
    batch = copy.deepcopy(batch)  # a forward may write into its arguments
    if isinstance(batch, dict):
        return network(**batch)
    return network(*batch) if isinstance(batch, tuple) else network(batch)


def _trained(network: nn.Module, batch: Batch) -> dict[str, list[Tensor]]:
    """Return what one training step leaves behind: outputs, gradients and statistics."""
    network.train()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    outputs = tensors_of(_output(network, batch))
    losses = [x.square().mean() for x in outputs if x.is_floating_point() and x.requires_grad]
    if losses:
        torch.stack(losses).sum().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    buffers = [b for name, b in network.named_buffers() if "activation_ranges" not in name]
    return {"outputs": [x.detach() for x in outputs], "gradients": gradients, "statistics": buffers}


def _run(session: Any, batch: Batch) -> list[Tensor]:
    inputs = session.get_inputs()
    values = (
        [batch[i.name] for i in inputs] if isinstance(batch, dict) else batch if isinstance(batch, tuple) else [batch]
    )
    feed = {i.name: value.numpy() for i, value in zip(inputs, values, strict=True)}
    return [torch.from_numpy(np.asarray(x)) for x in session.run(None, feed)]


def _expected(network: nn.Module, batch: Batch, outputs: int) -> list[Tensor]:
    torch.manual_seed(1)
    with torch.no_grad():
        output = _output(network, batch)
    return [logits_of(output)] if outputs == 1 else tensors_of(output)
