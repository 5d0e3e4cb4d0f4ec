"""lighten: networks made small and fast while they train.

Names and modules, as ``lighten.pruning.score.fpgm``, are imported when they are first used, so that ``import lighten``
needs torch and lightning alone.
"""

from typing import TYPE_CHECKING

from lighten.utils.lazy import lazy

if TYPE_CHECKING:
    from lighten.data import build_data as build_data
    from lighten.data import register_data as register_data
    from lighten.delivery.export.targets import export as export
    from lighten.delivery.export.targets import export_onnx as export_onnx
    from lighten.delivery.folders.hub import push_to_hub as push_to_hub
    from lighten.delivery.folders.model import load as load
    from lighten.delivery.folders.model import save as save
    from lighten.delivery.folders.predict import Prediction as Prediction
    from lighten.delivery.folders.predict import predict as predict
    from lighten.delivery.measure.measure import measure as measure
    from lighten.distillation.cache import TeacherCache as TeacherCache
    from lighten.distillation.callback import Distill as Distill
    from lighten.distillation.initialise import student_from_teacher as student_from_teacher
    from lighten.distillation.module import DistillationModule as DistillationModule
    from lighten.errors import UserError as UserError
    from lighten.models import build_model as build_model
    from lighten.models import register_model as register_model
    from lighten.pruning.callback import Prune as Prune
    from lighten.pruning.cut import shrink as shrink
    from lighten.pruning.mask import mask_ as mask_
    from lighten.pruning.plan import Plan as Plan
    from lighten.pruning.planner import plan_pruning as plan_pruning
    from lighten.quantization.calibrate import calibrate_ as calibrate_
    from lighten.quantization.callback import Quantize as Quantize
    from lighten.quantization.insert import quantize_ as quantize_
    from lighten.quantization.post_training import quantize_post_training as quantize_post_training
    from lighten.quantization.sensitivity import find_float_layers as find_float_layers
    from lighten.search.compress import compress as compress
    from lighten.tasks import register_task as register_task

_HOMES = {
    "Distill": "distillation.callback",
    "DistillationModule": "distillation.module",
    "Plan": "pruning.plan",
    "Prediction": "delivery.folders.predict",
    "Prune": "pruning.callback",
    "Quantize": "quantization.callback",
    "TeacherCache": "distillation.cache",
    "UserError": "errors",
    "build_data": "data",
    "build_model": "models",
    "calibrate_": "quantization.calibrate",
    "compress": "search.compress",
    "export": "delivery.export.targets",
    "export_onnx": "delivery.export.targets",
    "find_float_layers": "quantization.sensitivity",
    "load": "delivery.folders.model",
    "mask_": "pruning.mask",
    "measure": "delivery.measure.measure",
    "plan_pruning": "pruning.planner",
    "predict": "delivery.folders.predict",
    "push_to_hub": "delivery.folders.hub",
    "quantize_": "quantization.insert",
    "quantize_post_training": "quantization.post_training",
    "register_data": "data",
    "register_model": "models",
    "register_task": "tasks",
    "save": "delivery.folders.model",
    "shrink": "pruning.cut",
    "student_from_teacher": "distillation.initialise",
}

__all__ = sorted(_HOMES)
__getattr__ = lazy(__name__, _HOMES)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(_HOMES)
