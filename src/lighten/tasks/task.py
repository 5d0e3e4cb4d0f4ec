"""Task: all that depends on the kind of answer that a network gives."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a network answers."""

    name: ClassVar[str]

    def settings(self) -> dict[str, Any]:
        """Return name and settings in JSON types, from which ``task_of`` makes the same again."""
        return {"name": self.name, **asdict(self)}
