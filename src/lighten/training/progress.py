"""How far the fit is, as a fraction of its optimizer steps."""

import math

import lightning as L

from lighten.errors import UserError


def fit_progress(trainer: L.Trainer) -> float:
    """Return the share of the fit's optimizer steps that are done, in [0, 1].

    Raises:
        UserError: if the fit has no end that can be counted in steps.
    """
    return min(1.0, trainer.global_step / fit_steps(trainer))


def fit_steps(trainer: L.Trainer) -> int:
    """Return the number of optimizer steps of the whole fit, as ``trainer.global_step`` counts them.

    Raises:
        UserError: if the fit has no end that can be counted in steps.
    """
    steps = trainer.estimated_stepping_batches
    if not math.isfinite(steps) or steps <= 0:
        raise UserError(
            f"the fit's length is {steps} steps, expected a finite number above zero; set max_epochs or max_steps"
        )
    return int(steps) * max(1, len(trainer.optimizers))


def logs_now(trainer: L.Trainer) -> bool:
    """Return whether somebody hears of what this step logs: loggers at log points, other callbacks at an epoch's end.

    At other steps ``self.log`` costs as much, up to a millisecond for some values, and the Trainer passes none on.
    """
    return bool(trainer._logger_connector.should_update_logs or trainer.is_last_batch)
