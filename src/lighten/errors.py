"""Mistakes that a user can mend, each told in one line."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input. The message is one line: what was given, what was expected, what to do.

    The command line prints it without a traceback; in Python it is an ordinary ``ValueError``.
    """


def did_you_mean(given: str, choices: Iterable[str]) -> str:
    """Return ``"did you mean 'x'? "`` where a choice is near ``given``, then the list of choices.

    Example:
        >>> did_you_mean("fpgn", ["fpgm", "magnitude"])
        "did you mean 'fpgm'? Choices: fpgm, magnitude"
    """
    names = sorted(choices)
    near = get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}Choices: {', '.join(names)}"
