"""The settings of pruning, with their defaults, choices and checks: of recipes, the callback and plans alike."""

from dataclasses import dataclass, field

from lighten.errors import UserError
from lighten.schedule import SHAPES
from lighten.utils.checks import check_number, check_one_of, check_whole

SCORES = ("fpgm", "magnitude", "l1", "mix", "bn_scale", "taylor", "random", "auto")
SCOPES = ("uniform", "global", "sensitivity")
TARGETS = ("channels", "macs", "parameters", "latency")
WHOLES = ("present", "original")


@dataclass
class PruneSettings:
    """Which channels go, and when: ``compress.prune`` of a recipe.

    Attributes:
        amount: share of ``target`` to remove, in (0, 1); null: none.
        score: which channels of a group go first.
        scope: how the amount is spread over the groups.
        begin: share of the fit's optimizer steps at which the ramp starts.
        end: share at which ``amount`` is reached.
        schedule: how the removed share rises.
        soft: until ``end``, removed filters can grow again.
        exclude: names or patterns of layers to leave alone.
        target: what ``amount`` is a share of.
        align: widths become multiples of this where they can.
        rate_norm: for the score ``mix``: share of the filters that a norm lets pass.
        live: cut what goes out of the network while it trains, so that steps become faster.
        cuts: how often on the way, before the last one at ``end``.
    """

    amount: float | None = None
    score: str = "fpgm"
    scope: str = "uniform"
    begin: float = 0.1
    end: float = 0.6
    schedule: str = "cubic"
    soft: bool = False
    exclude: list[str] = field(default_factory=list)
    target: str = "channels"
    align: int = 1
    rate_norm: float = 0.9
    live: bool = False
    cuts: int = 4

    def check(self, prefix: str = "") -> None:
        """Raise ``UserError`` on the first setting that makes no sense, named with ``prefix``."""
        if self.amount is not None:
            check_amount(self.amount, prefix)
        check_choice(self, prefix)
        check_times(self.begin, self.end, self.schedule, prefix)
        check_live(self.live, self.cuts, soft=self.soft, prefix=prefix)


@dataclass(frozen=True)
class Settings:
    """How much, by what, where: what one plan is asked for, of the settings above.

    Attributes:
        of: what the amount is a share of where the model was pruned before: the ``present`` one, or the ``original``.

    Raises:
        UserError: naming the setting that is out of range.
    """

    amount: float
    score: str = PruneSettings.score
    scope: str = PruneSettings.scope
    target: str = PruneSettings.target
    align: int = PruneSettings.align
    rate_norm: float = PruneSettings.rate_norm
    of: str = "present"

    def __post_init__(self) -> None:
        check_amount(self.amount)
        check_choice(self)
        check_one_of("of", self.of, WHOLES)


def check_amount(amount: object, prefix: str = "") -> None:
    """Raise ``UserError`` unless it is a share that can be removed."""
    check_number(f"{prefix}amount", amount, above=0, below=1)


def check_choice(settings: PruneSettings | Settings, prefix: str = "") -> None:
    """Raise ``UserError`` unless what decides which channels go makes sense."""
    check_one_of(f"{prefix}score", settings.score, SCORES)
    check_one_of(f"{prefix}scope", settings.scope, SCOPES)
    check_one_of(f"{prefix}target", settings.target, TARGETS)
    check_whole(f"{prefix}align", settings.align, 1)
    check_number(f"{prefix}rate_norm", settings.rate_norm, above=0, most=1)
    if settings.target == "latency" and settings.scope == "global":
        raise UserError(
            f"{prefix}target=latency: expected {prefix}scope uniform or sensitivity, whose widths stay as planned"
        )


def check_times(begin: object, end: object, schedule: object, prefix: str = "") -> None:
    """Raise ``UserError`` unless the ramp of the removed share makes sense."""
    check_one_of(f"{prefix}schedule", schedule, SHAPES)
    check_number(f"{prefix}begin", begin, least=0, most=1)
    check_number(f"{prefix}end", end, least=0, most=1)
    if end < begin:  # type: ignore[operator]
        raise UserError(f"{prefix}end={end}: expected at least {prefix}begin={begin}")


def check_live(live: bool, cuts: object, *, soft: bool, prefix: str = "") -> None:
    """Raise ``UserError`` unless cuts during the fit make sense."""
    check_whole(f"{prefix}cuts", cuts, 1)
    if live and soft:
        raise UserError(f"{prefix}soft with {prefix}live: what is cut cannot grow again; choose one of them")
