"""From the last good checkpoint to the model folder of the compressed student."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lighten.delivery.artifacts import open_run, read_json, write_text
from lighten.delivery.folder import build, save
from lighten.errors import UserError
from lighten.pruning.plan import Plan
from lighten.pruning.shrink import shrink
from lighten.training.checkpoint import latest_good

FIT = "fit.json"
"""What the fit works on, written before its first step: the student's ``config.json``, quantization settings, opset."""


def shrink_run(run: str | Path) -> Path:
    """Cut out of the last good checkpoint's student what its plan removes; write ``plan.json`` and ``student/``.

    Reads ``fit.json`` and ``checkpoints/``. The plan is the checkpoint's own: of an earlier state, an earlier plan.

    Raises:
        UserError: if one of them is missing or damaged.
    """
    run = open_run(run)
    fit = read_json(run / FIT, made_by="lighten train recipe=…")
    model = build(fit["config"], {"quantization": fit["quantization"], "plan": None})
    checkpoint = latest_good(run / "checkpoints")
    if checkpoint is None:
        raise UserError(f"{run / 'checkpoints'}: holds no readable checkpoint; train again")
    plan = _load_student(model, checkpoint)
    (run / "plan.json").unlink(missing_ok=True)
    if plan is not None:
        write_text(run / "plan.json", plan)
        model = shrink(model.eval(), Plan.from_json(plan))
    config = {key: value for key, value in fit["config"].items() if key not in ("schema", "model")}
    return save(model.eval(), run / "student", **config)


def _load_student(model: nn.Module, checkpoint: Path) -> str | None:
    """Load the student's weights into ``model``; return the plan that ``Prune`` had then, as JSON."""
    content: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    prefix = "student."
    state = {k[len(prefix) :]: v for k, v in content["state_dict"].items() if k.startswith(prefix)}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{checkpoint}: is not of this recipe's student ({str(error).splitlines()[0]})") from None
    states = [state for key, state in content.get("callbacks", {}).items() if key.startswith("Prune{")]
    return next((state["plan"] for state in states if "plan" in state), None)
