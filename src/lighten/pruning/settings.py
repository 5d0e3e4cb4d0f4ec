"""What pruning is asked for: one object, checked before a model is looked at."""

from dataclasses import dataclass

from lighten.errors import UserError, did_you_mean
from lighten.pruning.allocate import SCOPES
from lighten.pruning.score import SCORES

TARGETS = ("channels", "macs", "parameters", "latency")
WHOLES = ("present", "original")


@dataclass(frozen=True)
class Settings:
    """How much, by what, where.

    Attributes:
        amount: share of ``target`` to remove, in (0, 1).
        score: which channels of a group go first.
        scope: how the amount is spread over the groups.
        target: what ``amount`` is a share of.
        align: widths become multiples of this where they can.
        rate_norm: for the score ``mix``: share of the filters that a norm lets pass.
        of: what the amount is a share of where the model was pruned before: the ``present`` one, or the ``original``.

    Raises:
        UserError: naming the setting that is out of range.
    """

    amount: float
    score: str = "fpgm"
    scope: str = "uniform"
    target: str = "channels"
    align: int = 1
    rate_norm: float = 0.9
    of: str = "present"

    def __post_init__(self) -> None:
        if isinstance(self.amount, bool) or not isinstance(self.amount, int | float) or not 0.0 < self.amount < 1.0:
            raise UserError(f"amount={self.amount!r}, expected a share of {self._what} above 0 and below 1")
        for name, choices in (("score", SCORES), ("scope", SCOPES), ("target", TARGETS), ("of", WHOLES)):
            if getattr(self, name) not in choices:
                raise UserError(f"no {name} {getattr(self, name)!r}; {did_you_mean(str(getattr(self, name)), choices)}")
        if isinstance(self.align, bool) or not isinstance(self.align, int) or self.align < 1:
            raise UserError(f"align={self.align!r}, expected a whole number of at least 1")
        if not isinstance(self.rate_norm, int | float) or not 0.0 < self.rate_norm <= 1.0:
            raise UserError(f"rate_norm={self.rate_norm!r}, expected a share above 0 and up to 1")
        if self.target == "latency" and self.scope == "global":
            raise UserError("target='latency' needs widths that stay as planned; use scope='uniform' or 'sensitivity'")

    @property
    def _what(self) -> str:
        return self.target if self.target in TARGETS else "channels"
