"""From the last good checkpoint to the model folder of the compressed student."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lighten.delivery.artifacts import open_run, read_json
from lighten.delivery.folder import build, save
from lighten.errors import UserError
from lighten.pruning.plan import Plan
from lighten.pruning.shrink import shrink
from lighten.training.checkpoint import latest_good

FIT = "fit.json"
"""What the fit works on, written before its first step: the student's ``config.json``, quantization settings, opset."""


def shrink_run(run: str | Path) -> Path:
    """Cut what ``plan.json`` removes out of the last good checkpoint's student, and write ``student/``.

    Reads ``fit.json``, ``plan.json`` (where something was pruned) and ``checkpoints/``.

    Raises:
        UserError: if one of them is missing or damaged.
    """
    run = open_run(run)
    fit = read_json(run / FIT, made_by="lighten train recipe=…")
    model = build(fit["config"], {"quantization": fit["quantization"], "plan": None})
    checkpoint = latest_good(run / "checkpoints")
    if checkpoint is None:
        raise UserError(f"{run / 'checkpoints'}: holds no readable checkpoint; train again")
    _load_student(model, checkpoint)
    plan_file = run / "plan.json"
    if plan_file.exists():
        model = shrink(model.eval(), Plan.from_json(plan_file.read_text(encoding="utf-8")))
    config = {key: value for key, value in fit["config"].items() if key not in ("schema", "model")}
    return save(model.eval(), run / "student", **config)


def _load_student(model: nn.Module, checkpoint: Path) -> None:
    content: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    prefix = "student."
    state = {k[len(prefix) :]: v for k, v in content["state_dict"].items() if k.startswith(prefix)}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{checkpoint}: is not of this recipe's student ({str(error).splitlines()[0]})") from None
