"""Files that come with the package, checked before they are used."""

import hashlib
import io
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING

from lighten.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class EmbeddedFile:
    """A file that comes with the package.

    Args:
        name: of the file in ``lighten.data``.
        sha256: of the content that was released, in hexadecimal.
        script: of the repository, which builds the file.
    """

    name: str
    sha256: str
    script: str

    @property
    def path(self) -> Traversable:
        """Its place in the installed package."""
        return files("lighten.data") / self.name

    def read(self) -> bytes:
        """Return the content.

        Raises:
            UserError: if the file is missing or not the one that was released.
        """
        advice = f"reinstall lighten, or run scripts/{self.script} in its repository"
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror}); {advice}") from error
        digest = hashlib.sha256(content).hexdigest()
        if digest != self.sha256:
            raise UserError(
                f"{self.path} is damaged: its SHA-256 is {digest[:12]}…, expected {self.sha256[:12]}…; {advice}"
            )
        return content


def to_parquet(table: "pa.Table") -> bytes:
    """Return a table with a column ``split`` as a file; the same rows give the same bytes with the same pyarrow."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(
        table, buffer, compression="zstd", compression_level=19, use_dictionary=["split"], write_statistics=False
    )
    return buffer.getvalue()
