"""Checks and messages that data modules share."""

from lighten.errors import UserError


def check_at_least(least: int, **settings: object) -> None:
    """Raise ``UserError`` unless every setting is an integer of at least ``least``; the first that is not is named."""
    for key, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{key}={value!r}, expected an integer of at least {least}")


def first_line(error: Exception) -> str:
    """Return the beginning of an error's message."""
    return (str(error).strip() or type(error).__name__).split("\n")[0][:160]
