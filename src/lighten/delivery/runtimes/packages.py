"""The optional packages that targets other than ONNX need."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from lighten.delivery.runtimes.quiet import silent
from lighten.errors import UserError

PACKAGES = {"openvino": "openvino", "litert": "litert-torch", "executorch": "executorch"}
"""The package behind each extra; target and extra have the same name."""


def require(target: str) -> None:
    """Do nothing if the package behind ``target`` is there; it is not loaded.

    Raises:
        UserError: if it is not installed.
    """
    package = PACKAGES.get(target)
    if package is not None and find_spec(package.replace("-", "_")) is None:
        raise UserError(f"target {target!r} needs {package}; install it with: pip install 'lighten[{target}]'")


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
        reason = "" if missing else f" ({str(error).splitlines()[0]})"
        package = PACKAGES[target]
        raise UserError(
            f"target {target!r} needs {package}{reason}; install it with: pip install 'lighten[{target}]'"
        ) from None
