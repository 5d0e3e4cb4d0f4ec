"""Columns of the comparison of runs: a task's metrics, and what runs of all tasks have."""

from dataclasses import dataclass

from lighten.delivery.report.wording import CLASSES, Told, label_of


@dataclass(frozen=True)
class Column:
    """A figure of every run: its name for ``--sort``, heading, place in ``scores.json``, and which way is better."""

    name: str
    heading: str
    key: str
    more_is_better: bool


OTHERS = (
    Column("kept", "Kept", "comparison.retention", True),
    Column("bytes", "Size", "models.compressed.bytes", False),
    Column("smaller", "Smaller", "comparison.size_ratio", True),
    Column("latency", "Batch 1", "models.compressed.latency_ms.batch_1.median", False),
    Column("faster", "Faster", "comparison.speedup_batch_1", True),
    Column("latency_32", "Batch 32", "models.compressed.latency_ms.batch_32.median", False),
    Column("faster_32", "Faster", "comparison.speedup_batch_32", True),
    Column("macs", "MACs", "models.compressed.macs", False),
)
"""What runs of all tasks have."""


def columns_of(task: Told) -> tuple[Column, ...]:
    """Return the columns of runs of a task: its metrics, the leading one first, how alike answers are, the rest."""
    metrics = [
        Column(name, label_of(task, name), f"models.compressed.{name}", not meaning["lower_is_better"])
        for name, meaning in task["metrics"].items()
    ]
    alike = [
        Column(
            name if name not in task["metrics"] else f"{name}_alike",
            label_of(task, name),
            f"comparison.{name if name == 'agreement' else f'likeness.{name}'}",
            not meaning["lower_is_better"],
        )
        for name, meaning in list(task["alike"].items())[:1]
    ]
    return (*metrics, OTHERS[0], *alike, *OTHERS[1:])


COLUMNS = columns_of(CLASSES)
"""The columns of runs that answer with classes."""
