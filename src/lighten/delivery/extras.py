"""The optional packages that targets other than ONNX need."""

from importlib import import_module
from typing import Any

from lighten.delivery.quiet import silent
from lighten.errors import UserError

PACKAGES = {"openvino": "openvino", "litert": "litert-torch", "executorch": "executorch"}
"""The package behind each extra; target and extra have the same name."""


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
