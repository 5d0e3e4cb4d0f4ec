"""Settings of the optimizer and its learning rate."""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lighten.errors import UserError
from lighten.utils.checks import check_number, check_one_of

if TYPE_CHECKING:  # recipes read the settings without torch
    from lightning.pytorch.utilities.types import OptimizerLRScheduler
    from torch import nn
    from torch.optim import Optimizer

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "linear", "constant")


@dataclass
class OptimizerSettings:
    """An optimizer with a learning rate that warms up and then falls. An instance is itself the builder.

    Called with a module and the fit's number of optimizer steps it returns what ``configure_optimizers`` may return.

    Norms and biases (all parameters with fewer than two dimensions) are not decayed.

    Args:
        name: ``adamw`` or ``sgd``.
        lr: the highest learning rate.
        weight_decay: decoupled for ``adamw``, L2 for ``sgd``.
        momentum: for ``sgd``.
        nesterov: for ``sgd``.
        warmup: share of the fit's steps, in [0, 1), in which the rate rises linearly.
        schedule: how it falls to zero afterwards: ``cosine``, ``linear``, or not at all: ``constant``.

    Raises:
        UserError: for an unknown name or a number out of its range.

    Example:
        >>> OptimizerSettings(name="sgd", lr=0.1).factor(0, total_steps=100)
        0.2
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    momentum: float = 0.9
    nesterov: bool = True
    warmup: float = 0.05
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        self.check("optimizer.")

    def check(self, prefix: str = "") -> None:
        """Raise ``UserError`` on the first setting that makes no sense, named with ``prefix``."""
        check_one_of(f"{prefix}name", self.name, OPTIMIZERS)
        check_one_of(f"{prefix}schedule", self.schedule, SCHEDULES)
        check_number(f"{prefix}lr", self.lr, above=0)
        check_number(f"{prefix}weight_decay", self.weight_decay, least=0)
        check_number(f"{prefix}momentum", self.momentum, least=0, below=1)
        check_number(f"{prefix}warmup", self.warmup, least=0, below=1)
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise UserError(f"{prefix}nesterov=true: needs {prefix}momentum above 0; set nesterov to false")

    def __call__(self, module: "nn.Module", total_steps: int) -> "OptimizerLRScheduler":
        """Return optimizer and per-step scheduler for the parameters of ``module`` that take gradients."""
        from torch.optim.lr_scheduler import LambdaLR

        optimizer = self.optimizer(module)
        scheduler = LambdaLR(optimizer, lambda step: self.factor(step, total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer(self, module: "nn.Module") -> "Optimizer":
        """Return the optimizer alone, with a group that is decayed and one that is not."""
        from torch.optim import SGD, AdamW

        trained = [p for p in module.parameters() if p.requires_grad]
        if not trained:
            raise UserError(f"{type(module).__name__} has no parameter that takes gradients; there is nothing to train")
        decayed = [p for p in trained if p.ndim >= 2]
        plain = [p for p in trained if p.ndim < 2]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if self.name == "sgd":
            return SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)
        if any(p.device.type != "cpu" for p in trained):
            return AdamW(groups, lr=self.lr)
        optimizer: Any = AdamW(groups, lr=self.lr, fused=True)  # eight times as fast as PyTorch's default on CPUs
        optimizer._step_supports_amp_scaling = False  # no gradients are scaled here, so that Lightning may clip them
        return optimizer

    def factor(self, step: int, total_steps: int) -> float:
        """Return the share of ``lr`` that step number ``step`` (from 0) uses.

        Rises over the first ``warmup * total_steps`` steps, then follows (1 + cos(pi t)) / 2 or 1 - t
        (Loshchilov & Hutter 2017 for the cosine), t running from 0 to 1 at the end of the fit.
        """
        rise = round(self.warmup * total_steps)
        if step < rise:
            return (step + 1) / rise
        t = min(1.0, (step - rise) / max(1, total_steps - rise))
        return {"cosine": (1 + math.cos(math.pi * t)) / 2, "linear": 1 - t, "constant": 1.0}[self.schedule]

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain Python."""
        return asdict(self)
