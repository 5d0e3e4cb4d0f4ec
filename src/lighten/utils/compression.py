"""The record of what was done to a model: how it was built, pruned and quantized."""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

RECORD = "lighten_record"
"""The attribute in which a model carries its record."""


@dataclass(frozen=True)
class CompressionRecord:
    """What was done to a model; ``None`` where nothing was.

    Attributes:
        spec: from which ``build_model`` makes it, ``{"name", "num_classes", "input_shape", "options"}``, JSON types.
        options: those of ``spec``, where the model's builder itself says how to build the same again.
        plan: of pruning: what was cut out of the model as it was before the first cut.
        quantization: settings, JSON types.
        example: of what it was quantized with, the input as :func:`~lighten.utils.descriptions.describe` puts it.
        live: the part of ``plan`` that a fit has cut while it trained, as :mod:`lighten.pruning.live` notes it.
    """

    spec: Any = None
    options: Any = None
    plan: Any = None
    quantization: Any = None
    example: Any = None
    live: Any = None


FIELDS = tuple(field.name for field in fields(CompressionRecord))


def record_of(model: "nn.Module", *, own: bool = False) -> CompressionRecord:
    """Return the record that ``model`` carries, or an empty one.

    Args:
        model: any module; left as it is.
        own: do not take that of a model inside, where ``model`` is a wrapper that forwards attributes.
    """

    def held(name: str) -> Any:
        return vars(model).get(name) if own else getattr(model, name, None)

    # a model that was pickled by an earlier version has an attribute for each field
    return held(RECORD) or CompressionRecord(*(held(f"lighten_{name}") for name in FIELDS))


def record_(model: "nn.Module", **changes: Any) -> None:
    """Change fields of the record that ``model`` carries."""
    record = replace(record_of(model), **changes)
    for name in (RECORD, *(f"lighten_{name}" for name in FIELDS)):
        vars(model).pop(name, None)
    if record != CompressionRecord():
        setattr(model, RECORD, record)
