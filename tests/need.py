"""What tests need that ``pip`` does not install: without it they are skipped and say how to get it; in CI they fail."""

import os

import pytest


def need(there: object, what: str, how: str) -> None:
    """Go on if something is there; skip the test, or fail it where the environment's ``CI`` is set.

    Args:
        there: true or false, or what ``shutil.which`` returns.
        what: is needed.
        how: to get it, such as a command.
    """
    if there:
        return
    said = f"needs {what}: {how}"
    if os.environ.get("CI"):
        pytest.fail(f"{said} (CI is set, where nothing is skipped)", pytrace=False)
    pytest.skip(said)
