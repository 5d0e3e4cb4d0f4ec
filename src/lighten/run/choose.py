"""Choice of a network for data of which a recipe only says ``auto``."""

from collections.abc import Mapping
from typing import Any

from lighten.models.registry import option_names
from lighten.recipe.schema import AUTO, Recipe
from lighten.tasks import task_of

WIDTHS = {"teacher": (32, 24), "student": (16, 8)}
"""Channels of the first stage of a ResNet and of a U-Net."""
PYRAMIDS = {
    "teacher": {"widths": [32, 64, 128], "blocks": 2, "neck": 64},
    "student": {"widths": [16, 32, 64], "blocks": 1, "neck": 32},
}
"""Of detectors."""
LARGE = 48
"""Pixels of a side from which on a ResNet halves the resolution at once."""


def chosen(recipe: Recipe, data: Any, role: str) -> tuple[str, Mapping[str, Any]]:
    """Return name and options of the model of a role.

    A model that has several heads gets the task's. For ``auto`` a table gets a ``table_mlp``; images for which the
    answer is a mask, a picture or heat maps a ``unet``, for which it is boxes an ``fcos``, others a ``resnet20``.
    Options that the recipe gives are kept.

    Args:
        recipe: whose choice it is.
        data: says what goes in and what is answered.
        role: ``"teacher"`` or ``"student"``.
    """
    name, given = getattr(recipe, role), dict(getattr(recipe, f"{role}_options"))
    task, shape = task_of(data.task), data.input_shape
    if name != AUTO:
        return name, {"head": task.head, **given} if "head" in option_names(name) else given
    if isinstance(shape, Mapping):
        return "table_mlp", {"hidden": [512, 512, 256] if role == "teacher" else [128, 64], **given}
    narrow, wide = WIDTHS[role][::-1]
    if task.answer_dims == 4:
        depth = max(1, min(4, min(shape[1:]).bit_length() - 4))
        return "unet", {"width": narrow, "depth": depth, "residual": task.reads == "pictures", **given}
    if task.head == "detection":
        return "fcos", {**PYRAMIDS[role], **given}
    stride = 2 if min(shape[1:]) >= LARGE else 1
    return "resnet20", {"width": wide, "blocks": 2 if role == "teacher" else 1, "stem_stride": stride, **given}


def describe_choice(recipe: Recipe, data: Any) -> str | None:
    """Return what was found and chosen, in a sentence; ``None`` where the recipe says it all."""
    roles = [role for role in ("teacher", "student") if getattr(recipe, role) == AUTO]
    if not roles:
        return None
    task = task_of(data.task)
    shape = data.input_shape
    table = isinstance(shape, Mapping)
    size = f"{len(shape['categories']) + shape['numbers']} features" if table else "×".join(map(str, shape))
    models = []
    for role in roles:
        name, options = chosen(recipe, data, role)
        models.append(f"{role} {name} ({', '.join(f'{key} {value}' for key, value in options.items())})")
    return f"found: task {task.name}, {data.num_classes} {task.outputs_are}, inputs {size}; chosen: {'; '.join(models)}"
