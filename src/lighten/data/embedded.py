"""Files that come with the package, checked before they are used."""

import hashlib
from importlib.resources.abc import Traversable

from lighten.errors import UserError


def read_checked(file: Traversable, sha256: str, *, script: str) -> bytes:
    """Return the content of an embedded file.

    Args:
        file: its place in the installed package.
        sha256: of the content that was released, in hexadecimal.
        script: of the repository, which builds the file.

    Raises:
        UserError: if the file is missing or not the one that was released.
    """
    advice = f"reinstall lighten, or run scripts/{script} in its repository"
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); {advice}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise UserError(f"{file} is damaged: its SHA-256 is {digest[:12]}…, expected {sha256[:12]}…; {advice}")
    return content
