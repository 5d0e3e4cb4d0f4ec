"""Samples that a preflight looks at, and the problems that it finds."""

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import RandomSampler, SequentialSampler, Subset

from lighten.utils.batch import BatchFormat
from lighten.utils.inputs import Call, map_tensors

MAX_BYTES = 128 << 20
"""Bytes of inputs that are kept of a part, the first batch aside."""
CHUNK = 16
"""Samples of one forward pass, so that large models notice that the time is up."""
MIN_SAMPLES = 30
"""Samples from which shares are judged: the normal approximation of their error holds."""
ERROR, WARNING = "error", "warning"


@dataclass(frozen=True)
class Problem:
    """Something that looks wrong.

    Attributes:
        severity: ``"error"``, with which a fit would fail or teach nonsense, or ``"warning"``.
        message: one line: what was found, what was expected, what to do.
    """

    severity: str
    message: str


@dataclass
class LoaderSamples:
    """The samples of a loader that are looked at: calls and labels, no more rows than were asked for."""

    name: str
    batches: list[tuple[Call, Any, int]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    @property
    def samples(self) -> int:
        """How many there are."""
        return sum(rows for _, _, rows in self.batches)

    def chunks(self) -> Iterator[tuple[int, Call, Any]]:
        """Yield (number of the first sample, call, labels) of a few samples at a time."""
        first = 0
        for call, labels, rows in self.batches:
            for start in range(0, rows, CHUNK):
                part = slice(start, min(start + CHUNK, rows))
                yield first + start, _cut(call, part, rows), _cut(labels, part, rows)
            first += rows


def collect(part: LoaderSamples, loader: Iterable[Any], samples: int, end: float, form: BatchFormat) -> None:
    """Fill ``part`` with up to ``samples`` samples, fetching none after the time ``end``."""
    kept = 0
    for batch in loader:
        parts = form.split(batch)
        call, labels = parts.call, parts.labels
        rows = rows_of(call)
        part.sizes.append(rows)
        taken = min(rows, samples - part.samples)
        part.batches.append((_cut(call, slice(0, taken), rows), _cut(labels, slice(0, taken), rows), taken))
        kept += sum(t.numel() * t.element_size() for t in tensors_of(call))
        if part.samples >= samples or kept >= MAX_BYTES or time.monotonic() > end:
            return


def tensors_of(tree: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists and mappings, lone numbers aside."""
    return [x for x in torch.utils._pytree.tree_leaves(tree) if isinstance(x, Tensor) and x.ndim]


def rows_of(call: Call) -> int:
    """Return the samples of a batch."""
    return next((len(t) for t in tensors_of(call)), 0)


def _cut(tree: Any, part: slice, rows: int) -> Any:
    return map_tensors(lambda t: t[part] if t.ndim and len(t) == rows else t, tree)


def token_ids(call: Call) -> Tensor | None:
    """Return token ids, (batch, length), of a call that has some."""
    ids = call[1].get("input_ids", call[0][0] if call[0] else None)
    return ids if isinstance(ids, Tensor) and ids.ndim == 2 and ids.dtype in (torch.int64, torch.int32) else None


def digests_of(call: Call, rows: int) -> list[bytes]:
    """Return a digest of each sample's inputs; padding is no part of it."""
    ids, mask = token_ids(call), call[1].get("attention_mask")
    if ids is not None:
        keep = torch.ones_like(ids) if mask is None or mask.shape != ids.shape else mask
        parts = [[x[k.bool()]] for x, k in zip(ids.long().cpu(), keep.cpu(), strict=True)]
    else:
        parts = [[t[i].detach().cpu() for t in tensors_of(call) if len(t) == rows] for i in range(rows)]
    digests = []
    for tensors in parts:
        digest = hashlib.blake2b(digest_size=16)
        for tensor in tensors:
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        digests.append(digest.digest())
    return digests


def source_of(loader: Any) -> tuple[Any, set[int] | None]:
    """Return a loader's data set, and which of its samples where it is a subset; ``None`` if that cannot be known."""
    dataset = getattr(loader, "dataset", None)
    sampler = getattr(loader, "sampler", None)
    if length_of(dataset) is None or type(sampler) not in (SequentialSampler, RandomSampler):
        return None, None
    if isinstance(dataset, Subset):
        return dataset.dataset, {int(i) for i in dataset.indices}
    return dataset, None


def length_of(dataset: Any) -> int | None:
    """Return the samples of a data set, ``None`` where that cannot be known."""
    try:
        return len(dataset)
    except TypeError:  # one that only iterates
        return None


def name_of(label: int, names: Sequence[str]) -> str:
    """Return how a class is called in messages."""
    return repr(names[label]) if label < len(names) else f"class {label}"


def numbers(values: Sequence[float]) -> str:
    """Return numbers as messages show them."""
    return f"({', '.join(f'{float(v):.4g}' for v in values)})"
