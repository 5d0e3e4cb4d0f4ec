"""Optional packages of the targets: whether they are there, and how to get them."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from lighten.delivery.runtimes.quiet import silent
from lighten.errors import UserError, first_line
from lighten.utils.targets import TARGETS, Target


def require(target: str) -> None:
    """Do nothing if the package behind ``target`` is there; it is not loaded.

    Raises:
        UserError: if it is not installed.
    """
    found = TARGETS.get(target)
    if found is not None and found.extra is not None and not is_installed(found.package):
        raise _missing(found)


def need(target: str, *modules: str) -> list[Any]:
    """Import ``modules`` of the package behind ``target`` and return them.

    Raises:
        UserError: if the package is not installed, or cannot be loaded.
    """
    try:
        with silent():
            return [import_module(module) for module in modules]
    except ImportError as error:
        missing = error.name is not None and error.name.partition(".")[0] == modules[0].partition(".")[0]
        raise _missing(TARGETS[target], "" if missing else f" ({first_line(error)})") from None


def is_installed(package: str) -> bool:
    """Return whether a package, as ``pip`` calls it, can be imported."""
    return find_spec(package.replace("-", "_")) is not None


def _missing(target: Target, reason: str = "") -> UserError:
    return UserError(
        f"target {target.name!r} needs {target.package}{reason}; install it with: pip install 'lighten[{target.extra}]'"
    )
