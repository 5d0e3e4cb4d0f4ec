"""The request that a writer of files gets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from lighten.utils.files import replace_file
from lighten.utils.inputs import ExampleInput
from lighten.utils.targets import Target


@dataclass(frozen=True)
class Request:
    """One call of ``export``: its arguments, checked."""

    model: nn.Module
    example: ExampleInput
    path: Path
    target: Target
    opset: int | None = None
    mode: str | None = None
    outputs: Sequence[str] | None = None
    batch: int | None = None
    dynamic: Mapping[str, Mapping[int, str]] | None = None

    def store(self, content: bytes) -> None:
        """Write the file, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, lambda file: file.write(content))
