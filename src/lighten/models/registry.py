"""Registry of models."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lighten.errors import UserError
from lighten.utils.compression import record_, record_of
from lighten.utils.registry import Builder, Registry

if TYPE_CHECKING:
    from torch import nn

    from lighten.utils.inputs import Shape

_RESNETS = {f"resnet{depth}": "lighten.models.resnet" for depth in (20, 32, 44, 56, 110)}
_PLAIN = _RESNETS | {name: f"lighten.models.{name}" for name in ("cnn", "fcos", "mlp", "table_mlp", "unet")}
_LIBRARIES = {name: f"lighten.models.{name}" for name in ("timm", "torchvision", "transformers")}
"""Their modules have a ``check`` of the options."""
_OTHERS = _LIBRARIES | {"bert_rows": "lighten.models.rows"}
_REGISTRY = Registry(
    "model",
    group="lighten.models",
    builtin=_PLAIN | _OTHERS,
    given=("num_classes", "input_shape"),
)


def register_model(name: str) -> Callable[[Builder], Builder]:
    """Return a decorator that makes a builder available as ``name`` in recipes.

    The builder is called as ``builder(num_classes=…, input_shape=…, **options)``; ``input_shape`` is
    (channels, height, width) for images, (length,) for texts, ``{"numbers": count, "categories": [size, …]}`` for
    tables.

    Raises:
        UserError: if another module registered the name.

    Example:
        >>> @register_model("tiny")
        ... def tiny(*, num_classes, input_shape, hidden=8):
        ...     return nn.Sequential(nn.Flatten(), nn.LazyLinear(hidden), nn.Linear(hidden, num_classes))
    """
    return _REGISTRY.register(name)


def model_names() -> list[str]:
    """Return the names that recipes may use, without importing the models."""
    return _REGISTRY.names()


def build_model(name: str, /, *, num_classes: int, input_shape: "Shape", **options: Any) -> "nn.Module":
    """Return a new model; its weights depend only on torch's random state.

    The result's record has a ``spec``: ``{"name", "num_classes", "input_shape", "options"}``, JSON types from which the
    same architecture can be built again.

    Args:
        name: one of ``model_names()``.
        num_classes: size of the logits.
        input_shape: (channels, height, width) of one image, (length,) of one text, or for tables ``{"numbers": count,
            "categories": [size, …]}``.
        **options: options of the builder.

    Raises:
        UserError: if the name or an option is unknown, an option's value is out of range, or the model needs other
            inputs.
    """
    options = _REGISTRY.bind(name, options)
    of_table = isinstance(input_shape, Mapping)
    if of_table and name in {*_PLAIN, *_OTHERS} - {"table_mlp"}:
        raise UserError(f"model {name} reads images or texts, and the data is a table of numbers; choose table_mlp")
    shape = dict(input_shape) if isinstance(input_shape, Mapping) else tuple(input_shape)
    model = _REGISTRY.get(name)(num_classes=num_classes, input_shape=shape, **options)
    written = shape if of_table else list(shape)
    spec = {"name": name, "num_classes": num_classes, "input_shape": written, "options": options}
    # A builder that loads from a path says itself how to build the same again without that path.
    record_(model, spec=spec | {"options": record_of(model).options or options})
    return model


def option_names(name: str) -> list[str]:
    """Return the options that a model takes by name; what a builder takes beyond them is not known."""
    return _REGISTRY.options(name)


def check_model(name: str, options: Mapping[str, Any]) -> None:
    """Check name and options without data and, for the built-in families, by a build that allocates nothing.

    Names of networks of ``timm`` and ``torchvision`` are looked up there.

    Raises:
        UserError: as ``build_model``.
    """
    options = _REGISTRY.bind(name, options)
    if name in _LIBRARIES:
        import_module(_LIBRARIES[name]).check(**options)
    if name in _PLAIN:
        import torch

        with torch.device("meta"):
            # as many answers as channels: a model may add the one to the other
            shape = {"numbers": 4, "categories": [3, 5]} if name == "table_mlp" else (3, 32, 32)
            _REGISTRY.get(name)(num_classes=3, input_shape=shape, **options)


MAX_OPTION = 1 << 16
"""Channels or nodes of a layer; more would not fit any memory."""
DEEPEST = 1000
"""Layers or blocks, built one by one."""


def whole(model: str, key: str, value: Any, *, least: int = 1, most: int = MAX_OPTION) -> int:
    """Return ``value`` if it is an integer from ``least`` to ``most``.

    Raises:
        UserError: if it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"model {model}: {key}={value!r}, expected an integer of at least {least}")
    if value > most:
        raise UserError(f"model {model}: {key}={value!r}, expected at most {most}")
    return value


def checked_shape(model: str, shape: Any, *, most: int = MAX_OPTION) -> "Shape":
    """Return an ``input_shape`` as :func:`build_model` takes it, of one that a file holds.

    Args:
        model: its name, for messages.
        shape: a list of sizes, or what a table has.
        most: of a size.

    Raises:
        UserError: if it is anything else, or a size is no integer in range.
    """
    if not isinstance(shape, Mapping):
        return tuple(whole(model, "input_shape", size, most=most) for size in shape)
    if set(shape) != {"numbers", "categories"}:
        raise UserError(f"model {model}: input_shape={shape!r}, expected numbers and categories")
    sizes = [whole(model, "input_shape", size, most=most) for size in shape["categories"]]
    return {"numbers": whole(model, "input_shape", shape["numbers"], least=0, most=most), "categories": sizes}


def wholes(model: str, key: str, values: Any) -> list[int]:
    """Return ``values`` if it is a list of one or more integers above zero.

    Raises:
        UserError: if it is not.
    """
    if isinstance(values, str) or not hasattr(values, "__len__") or len(values) == 0:
        raise UserError(f"model {model}: {key}={values!r}, expected a list of integers, such as [32, 64]")
    if len(values) > DEEPEST:
        raise UserError(f"model {model}: {key} has {len(values)} entries, expected at most {DEEPEST}")
    return [whole(model, f"{key}[{i}]", v) for i, v in enumerate(values)]
