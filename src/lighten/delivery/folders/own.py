"""Models of one's own in model folders: the class by its name, and what was done to the model and to its parts."""

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from lighten.errors import UserError, shown
from lighten.quantization.activation_quantizers import QUANTIZERS
from lighten.quantization.post_training import HALVES
from lighten.quantization.swap_class import born_as
from lighten.quantization.table import rows_as_json
from lighten.utils.compression import record_of
from lighten.utils.descriptions import synthesise
from lighten.utils.inputs import ExampleInput
from lighten.utils.preserve import random_state_kept

CLASS, PARTS = "class", "parts"
"""Entries of ``config.json`` and ``compression.json``."""
_LOCAL = "<locals>"


def class_of(model: nn.Module) -> str:
    """Return the class of a model as a folder names it, whatever was mixed into it since.

    Example:
        >>> class_of(nn.Linear(1, 1))
        'torch.nn.modules.linear.Linear'
    """
    kind = born_as(model)
    return f"{kind.__module__}.{kind.__qualname__}"


def can_be_imported(name: str) -> bool:
    """Return whether a class is one of a module, and not of a script or a function; nothing is imported.

    Example:
        >>> can_be_imported("torch.nn.modules.linear.Linear"), can_be_imported("__main__.Net")
        (True, False)
    """
    package = name.partition(".")[0]
    return package != "__main__" and _LOCAL not in name and package.isidentifier() and find_spec(package) is not None


def needs_model(where: object, name: str) -> UserError:
    """Return the error of a folder that nobody can build a model for, except from an instance of its class."""
    name = shown(name, 200)
    known = "" if can_be_imported(name) else ", a class that cannot be imported here,"
    return UserError(
        f"{where}: holds the weights of {name}{known} and no registry builds it; give load(…, model=) an instance of "
        "it as it was before it was pruned and quantized"
    )


def check_fresh(where: object, model: nn.Module, name: str | None) -> None:
    """Refuse a model that a folder cannot be loaded into.

    Args:
        where: what messages call the folder.
        model: the user's.
        name: the class that the folder names.

    Raises:
        UserError: if it is of another class, or pruned or quantized already.
    """
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model={shown(repr(model))}: expected an instance of nn.Module, such as the folder was made of"
        )
    if name is not None and not _same_class(name, class_of(model)):
        raise UserError(f"{where}: holds the weights of {shown(name, 200)}, and model= is of {class_of(model)}")
    if done_to(model):
        raise UserError(
            f"model= is a {type(model).__name__} that was pruned or quantized; give one as it was before, the folder "
            "says what was done"
        )


def _same_class(one: str, other: str) -> bool:
    """Return whether two names are of one class; a script's is known by its own name alone."""
    scripts = any(name.startswith("__main__.") for name in (one, other))
    return one == other or (scripts and one.rpartition(".")[2] == other.rpartition(".")[2])


def done_to(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return what was done to a model and to parts of it, by their names; the model itself is ``""``.

    What is said of a module is not said again of the modules in it.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules():
        record = record_of(module, own=bool(name))
        around = [done for outer, done in found.items() if not outer or name.startswith(f"{outer}.")]
        plan = record.plan if not any(done["plan"] for done in around) else None
        settings = record.quantization if not any(done["quantization"] for done in around) else None
        if plan is not None or settings is not None:
            found[name] = {"plan": None if plan is None else json.loads(plan.to_json()), "quantization": settings}
            found[name] |= {"example": record.example} if record.example is not None else {}
            found[name] |= {"layers": rows_as_json(module)} if hasattr(module, QUANTIZERS) else {}
    return found


def example_for(done: Mapping[str, Any]) -> ExampleInput:
    """Return an input such as a model or part was quantized with; of an earlier version, as it was pruned with.

    Raises:
        UserError: if nothing says what it looks like.
    """
    described = done.get("example") or (done.get("plan") or {}).get("example")
    if described is None:
        raise UserError("nothing says what its input looks like")
    args, kwargs = synthesise(described, torch.device("cpu"), torch.float32)
    return kwargs if kwargs and not args else args


def redone(
    model: nn.Module,
    done: Mapping[str, Mapping[str, Any]],
    quantize_: Callable[[nn.Module, Mapping[str, Any]], object],
    cut: Callable[[nn.Module, Mapping[str, Any]], nn.Module],
) -> nn.Module:
    """Return ``model``, changed in place, after all that a folder says was done to it and to its parts."""
    with random_state_kept(model):
        for name, what in done.items():
            if what.get("quantization") is not None:
                quantize_(model.get_submodule(name), what)
        for name, what in done.items():
            if what.get("plan") is not None:
                small = cut(model.get_submodule(name), what["plan"])
                if not name:
                    model = small
                else:
                    model.set_submodule(name, small)
    return model


def take_types_(model: nn.Module, state: Mapping[str, Tensor], done: Mapping[str, Mapping[str, Any]]) -> None:
    """Let tensors of ``model`` have the types that were saved, where these are not merely stored in 16 bits."""
    if any((what.get("quantization") or {}).get("mode") in HALVES for what in done.values()):
        return
    for name, own in model.state_dict(keep_vars=True).items():
        if name in state and own.dtype != state[name].dtype:
            own.data = own.data.to(state[name].dtype)


def misfit(model: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Return what keeps ``state`` from being loaded, or ``None``."""
    own = model.state_dict()
    for name in [*own, *state]:
        given, there = (tuple(of[name].shape) if name in of else "missing" for of in (own, state))
        if given != there:
            return f"{name!r} is {given} in {type(model).__name__}, and {there} in the folder"
    return None


def check_layers(model: nn.Module, done: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that quantizers stand, with their ranges, where a folder says.

    Raises:
        UserError: naming the first that does not.
    """
    for name, what in done.items():
        if "layers" not in what:
            continue
        rows = json.loads(json.dumps(rows_as_json(model.get_submodule(name))))
        keys = ("name", "weight_bits", "input", "output")
        found, said = ([{key: row[key] for key in keys} for row in each] for each in (rows, what["layers"]))
        if found != said:
            first = next((b or a for a, b in zip_longest(found, said) if a != b), {})
            raise UserError(
                f"{first.get('name')!r} is quantized otherwise than the folder says: its class computes something else "
                "since"
            )
