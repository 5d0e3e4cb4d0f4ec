"""Exceptions for users, and one-line messages."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input. The message is one line: what was given, what was expected, what to do.

    The command line prints it without a traceback; in Python it is an ordinary ``ValueError``.
    """


class RecipeError(UserError):
    """A recipe that cannot be run; the message is one line, the exit code 2."""


class NeedNotMetError(UserError):
    """A search that ended without meeting its need; what it found is saved. The exit code is 4."""


def one_line(error: BaseException, most: int = 1000) -> str:
    """Return an error's message for a terminal: one line that is not endless and cannot colour or move anything."""
    return shown(" ".join(str(error).split()), most)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; of an empty one its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message; of an empty one its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def shown(text: str, most: int = 80) -> str:
    r"""Return ``text`` with unprintable characters escaped, cut to about ``most``.

    Example:
        >>> shown("a\x1b[31m")
        'a\\x1b[31m'
    """
    cut = text if len(text) <= most else f"{text[:most]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def did_you_mean(given: str, choices: Iterable[str]) -> str:
    """Return ``"did you mean 'x'? "`` where a choice is near ``given``, then the list of choices.

    Example:
        >>> did_you_mean("fpgn", ["fpgm", "magnitude"])
        "did you mean 'fpgm'? Choices: fpgm, magnitude"
    """
    names = sorted(choices)
    near = get_close_matches(given[:100], names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}Choices: {', '.join(names)}"
