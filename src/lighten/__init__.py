"""lighten: networks made small and fast while they train.

Names are imported when they are first used, so that ``import lighten`` needs torch and lightning alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lighten.data import build_data as build_data
    from lighten.data import register_data as register_data
    from lighten.delivery.export.targets import export as export
    from lighten.delivery.export.targets import export_onnx as export_onnx
    from lighten.delivery.folders.hub import push_to_hub as push_to_hub
    from lighten.delivery.folders.model import load as load
    from lighten.delivery.folders.model import save as save
    from lighten.delivery.measure.measure import measure as measure
    from lighten.distillation.cache import TeacherCache as TeacherCache
    from lighten.distillation.initialise import student_from_teacher as student_from_teacher
    from lighten.distillation.module import DistillationModule as DistillationModule
    from lighten.errors import UserError as UserError
    from lighten.models import build_model as build_model
    from lighten.models import register_model as register_model
    from lighten.pruning.callback import Prune as Prune
    from lighten.pruning.decide import plan_pruning as plan_pruning
    from lighten.pruning.mask import mask_ as mask_
    from lighten.pruning.plan import Plan as Plan
    from lighten.pruning.shrink import shrink as shrink
    from lighten.quantization.calibrate import calibrate_ as calibrate_
    from lighten.quantization.callback import Quantize as Quantize
    from lighten.quantization.insert import quantize_ as quantize_
    from lighten.quantization.post_training import quantize_post_training as quantize_post_training
    from lighten.quantization.sensitivity import find_float_layers as find_float_layers

_HOMES = {
    "DistillationModule": "distillation.module",
    "Plan": "pruning.plan",
    "Prune": "pruning.callback",
    "Quantize": "quantization.callback",
    "TeacherCache": "distillation.cache",
    "UserError": "errors",
    "build_data": "data",
    "build_model": "models",
    "calibrate_": "quantization.calibrate",
    "export": "delivery.export.targets",
    "export_onnx": "delivery.export.targets",
    "find_float_layers": "quantization.sensitivity",
    "load": "delivery.folders.model",
    "mask_": "pruning.mask",
    "measure": "delivery.measure.measure",
    "plan_pruning": "pruning.decide",
    "push_to_hub": "delivery.folders.hub",
    "quantize_": "quantization.insert",
    "quantize_post_training": "quantization.post_training",
    "register_data": "data",
    "register_model": "models",
    "save": "delivery.folders.model",
    "shrink": "pruning.shrink",
    "student_from_teacher": "distillation.initialise",
}

_PACKAGES = ("data", "distillation", "models", "pruning", "quantization")
"""What is reached as an attribute too: ``lighten.pruning.score.fpgm``."""

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name in _PACKAGES:
        return import_module(f"lighten.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'lighten' has no attribute {name!r}")
    value = getattr(import_module(f"lighten.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(_HOMES)
