"""A sweep: from command-line words to a space of settings that a sampler draws from."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

from lighten.errors import RecipeError, UserError, did_you_mean
from lighten.utils.checks import check_one_of, check_whole

PREFIX = "sweep."
SAMPLERS = ("tpe", "random", "grid")
GOALS = ("metric", "pareto")
STOPS = ("median", "none")
MAX_TRIALS = 1000


@dataclass(frozen=True)
class Interval:
    """Numbers from ``low`` to ``high``.

    Attributes:
        low: the least.
        high: the largest.
        log: drawn by their logarithm.
        whole: integers alone.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False


Space = Mapping[str, tuple[str, ...] | Interval]
"""By keys of a recipe: values as they are typed, or numbers."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep is asked to do.

    Attributes:
        words: settings that all trials share.
        space: settings that are drawn.
        trials: how many there are to be, over all processes that share the sweep.
        sampler: ``"tpe"`` (Bergstra et al. 2011), ``"random"``, or ``"grid"``: every combination once.
        goal: ``"metric"``, or ``"pareto"``: metric, latency and size at once.
        stop: ``"median"`` ends a fit whose best validation so far is below the median of the others', ``"none"`` none.
        seed: of the sampler.
    """

    words: tuple[str, ...]
    space: Space = field(default_factory=dict)
    trials: int = 20
    sampler: str = "tpe"
    goal: str = "metric"
    stop: str = "median"
    seed: int = 0

    @property
    def identity(self) -> str:
        """Return a name that the same words have again."""
        said = repr((sorted(self.words), sorted(self.space.items()), self.sampler, self.goal, self.seed))
        return f"sweep-{hashlib.sha256(said.encode()).hexdigest()[:8]}"

    def drawn(self, values: Mapping[str, Any]) -> list[str]:
        """Return the words of a trial."""
        return [*self.words, *(f"{key}={value}" for key, value in values.items())]

    def first(self) -> dict[str, Any]:
        """Return the first value of each setting."""
        return {key: given.low if isinstance(given, Interval) else given[0] for key, given in self.space.items()}


def sweep_of(argv: Sequence[str]) -> Sweep | None:
    """Return the sweep that words ask for by ``sweep.trials=N`` and the like; ``None`` where they ask for none.

    Raises:
        RecipeError: if a word cannot be read or contradicts another one, in one line.
    """
    ours = [word for word in argv if word.startswith(PREFIX)]
    if not ours:
        return None
    settings = dict(map(_setting, ours))
    if not {"-m", "--multirun"} & set(argv):
        raise RecipeError(f"{ours[0]}: is of a sweep; add -m")
    space: dict[str, tuple[str, ...] | Interval] = {}
    words = []
    for word in argv:
        if word in ("-m", "--multirun") or word in ours:
            continue
        override = _parsed(word)
        if override is None or not override.is_sweep_override():
            words.append(word)
        else:
            space[override.get_key_element()] = _values(word, override)
    if not space:
        raise RecipeError("sweep: nothing varies; give a setting several values, as optimizer.lr=interval(0.01,0.3)")
    try:
        return _checked(Sweep(tuple(words), space, **settings), "trials" in settings)
    except UserError as error:
        raise RecipeError(str(error)) from None


def _setting(word: str) -> tuple[str, Any]:
    name, _, value = word.removeprefix(PREFIX).partition("=")
    known = ("trials", "sampler", "goal", "stop", "seed")
    if name not in known:
        raise RecipeError(f"{word}: {did_you_mean(name, known)}")
    if name not in ("trials", "seed"):
        return name, value
    try:
        return name, int(value)
    except ValueError:
        raise RecipeError(f"{word}: expected a whole number") from None


def _parsed(word: str) -> Override | None:
    try:
        return OverridesParser.create().parse_overrides([word])[0]
    except Exception:  # whoever composes the recipe says what is wrong
        return None


def _values(word: str, override: Override) -> tuple[str, ...] | Interval:
    value = override.value()
    if isinstance(value, IntervalSweep):
        low, high = (value.start, value.end)
        assert low is not None
        assert high is not None
        whole = isinstance(low, int) or "int" in value.tags
        log = "log" in value.tags
        if not low < high or (log and low <= 0):
            raise RecipeError(f"{word}: expected two rising numbers{', above zero for log' if log else ''}")
        return Interval(int(low) if whole else low, int(high) if whole else high, log, whole)
    try:
        return tuple(dict.fromkeys(override.sweep_string_iterator()))
    except ValueError:
        raise RecipeError(f"{word}: cannot be enumerated, expected values with commas, or interval(…)") from None


def _checked(sweep: Sweep, counted: bool) -> Sweep:
    check_one_of("sweep.sampler", sweep.sampler, SAMPLERS)
    check_one_of("sweep.goal", sweep.goal, GOALS)
    check_one_of("sweep.stop", sweep.stop, STOPS)
    check_whole("sweep.trials", sweep.trials, 1, MAX_TRIALS)
    check_whole("sweep.seed", sweep.seed, 0)
    if sweep.sampler == "grid":
        size = 1
        for key, given in sweep.space.items():
            if isinstance(given, Interval):
                raise RecipeError(f"sweep.sampler=grid: {key} is an interval; list its values, or take another sampler")
            size *= len(given)
        trials = min(size, sweep.trials) if counted else size
        if trials > MAX_TRIALS:
            raise RecipeError(f"sweep.sampler=grid: {trials:,} combinations, expected {MAX_TRIALS:,} at most")
        return Sweep(**{**vars(sweep), "trials": trials})
    return sweep
