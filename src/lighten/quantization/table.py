"""Tables of what in a model is quantized and what is not."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from lighten.quantization.activation_quantizers import (
    quantizers_of,
)
from lighten.quantization.layers import FoldedNorm, QuantizedEmbedding, QuantizedLayer
from lighten.quantization.quantizer import Quantizer


@dataclass(frozen=True)
class Row:
    """One layer, function call or module.

    Attributes:
        name: of the module, or of the call in its module: ``"layer1.0:add0"``.
        kind: class of the module, or of the call.
        weight_bits: of its weight; ``None`` for what has none, or stays in floating point.
        input: smallest and largest activation, if it is quantized and known.
        output: likewise; of a chain with norm and ReLU, at its end.
        note: what it computes besides, or why it stays in floating point.
    """

    name: str
    kind: str
    weight_bits: int | None = None
    input: tuple[float, float] | None = None
    output: tuple[float, float] | None = None
    note: str = ""

    @property
    def quantized(self) -> bool:
        """Whether it computes on integers."""
        return not self.note.startswith(FLOAT)


FLOAT = "floating point"


def quantization_rows(model: nn.Module) -> list[Row]:
    """Return a row for each layer and call that is quantized, and for each module with parameters that is not.

    Args:
        model: as ``quantize_`` left it, calibrated or not.

    Raises:
        UserError: if it has no fake-quantizers.
    """
    quantizers = quantizers_of(model)
    ranges = list(zip(quantizers.low.tolist(), quantizers.high.tolist(), strict=True))

    def at(quantizer: Quantizer | None) -> tuple[float, float] | None:
        known = quantizer is not None and quantizers.parameters_of[quantizer.index] is not None
        return ranges[quantizer.index] if known and quantizer is not None else None

    rows: list[Row] = []
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, QuantizedEmbedding):
            rows.append(Row(name, kind, module.weight_bits, note="a scale a row"))
        elif isinstance(module, QuantizedLayer):
            own = module.quantizers
            with_it = [type(own.norm).__name__] if own.norm is not None else []
            note = " and ".join([*with_it, *(["ReLU"] if own.relu else [])])
            known = quantizers.parameters_of[own.input_location] is not None
            given = ranges[own.input_location] if known else None
            rows.append(Row(name, kind, module.weight_bits, given, at(own.output), note and f"with {note}"))
        elif name in quantizers.left:
            rows.append(Row(name, kind, note=f"{FLOAT}: {quantizers.left[name]}"))
        elif not isinstance(module, FoldedNorm) and any(True for _ in module.parameters(recurse=False)):
            rows.append(Row(name, kind, note=f"{FLOAT}: has no int8 form"))
    for name, call in quantizers.functions.names.items():
        if quantizers.weights_alone or call.done or call.output is None or call.output.on_grid:
            continue
        kind = name.rpartition(":")[2].rstrip("0123456789")
        given = next((at(quantizer) for quantizer in call.inputs.values()), None)
        rows.append(Row(name.removeprefix(":"), kind, None, given, at(call.output), "with ReLU" if call.relu else ""))
    return rows


def rows_as_json(model: nn.Module) -> list[dict[str, Any]]:
    """Return ``quantization_rows`` as plain Python."""
    return [asdict(row) for row in quantization_rows(model)]


def format_rows(rows: Iterable[Row]) -> str:
    """Return rows as a table of plain text; ranges that are not known yet are dashes."""
    rows = list(rows)
    cells = [("name", "kind", "bits", "input", "output", "")]
    for row in rows:
        bits = str(row.weight_bits) if row.weight_bits is not None else "8" if row.quantized else "-"
        cells.append((row.name, row.kind, bits, _span(row.input), _span(row.output), row.note))
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    count = sum(row.quantized for row in rows)
    return "\n".join([*lines, f"{count} of {len(rows)} in int8"])


def _span(bounds: tuple[float, float] | None) -> str:
    return f"{bounds[0]:.3g} to {bounds[1]:.3g}" if bounds else "-"


def summary(model: nn.Module) -> str:
    """Return one line: how many layers and activations are quantized, and which layers are not."""
    quantizers = quantizers_of(model)
    layers = sum(isinstance(m, QuantizedLayer | QuantizedEmbedding) for m in model.modules())
    line = f"{layers} layers, {len(quantizers.names)} activations in int8"
    whys: dict[str, list[str]] = {}
    for name, why in quantizers.left.items():
        whys.setdefault(why, []).append(name)
    left = "; ".join(f"{', '.join(names)} ({why})" for why, names in whys.items())
    return f"{line}; in floating point: {left}" if left else line
