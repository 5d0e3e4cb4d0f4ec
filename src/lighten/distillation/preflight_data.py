"""What batches say of themselves before a fit: inputs, tokens, labels, samples in two parts."""

import contextlib
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import RandomSampler, SequentialSampler, Subset

from lighten.distillation.loss import IGNORED
from lighten.utils.batch import BatchFormat
from lighten.utils.inputs import Call, map_tensors

_KEPT = 128 << 20
"""Bytes of inputs that are kept of a part, the first batch aside."""
_AT_ONCE = 16
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
            for start in range(0, rows, _AT_ONCE):
                part = slice(start, min(start + _AT_ONCE, rows))
                yield first + start, _cut(call, part, rows), _cut(labels, part, rows)
            first += rows

    def labels(self) -> Tensor:
        """Return all labels, on the CPU."""
        return torch.cat([labels.detach().cpu() for _, labels, _ in self.batches])


def look(part: LoaderSamples, loader: Iterable[Any], samples: int, end: float, form: BatchFormat) -> None:
    """Fill ``part`` with up to ``samples`` samples, fetching none after the time ``end``."""
    kept = 0
    for batch in loader:
        parts = form.split(batch)
        call, labels = parts.call, parts.labels
        rows = _rows(call)
        part.sizes.append(rows)
        taken = min(rows, samples - part.samples)
        part.batches.append((_cut(call, slice(0, taken), rows), _cut(labels, slice(0, taken), rows), taken))
        kept += sum(t.numel() * t.element_size() for t in tensors_of(call))
        if part.samples >= samples or kept >= _KEPT or time.monotonic() > end:
            return


def find_input_problems(
    part: LoaderSamples, normalisation: Any, tokenizer: Any, models: Mapping[str, nn.Module]
) -> Iterator[Problem]:
    """Find inputs that are missing, not finite, all the same, not normalised or not to be read as tokens."""
    if not part.samples:
        yield Problem(
            ERROR, f"the {part.name} loader gives no samples; expected some; check its split, filter and batch_size"
        )
        return
    first = 0
    prints: list[bytes] = []
    for call, _, rows in part.batches:
        for tensor in tensors_of(call):
            if tensor.is_floating_point() and len(tensor) == rows:
                bad = (~tensor.reshape(rows, -1).isfinite()).any(1).nonzero()
                if len(bad):
                    yield Problem(
                        ERROR,
                        f"{part.name} sample {first + int(bad[0])} has inputs that are not finite; "
                        "expected numbers; remove or mend it",
                    )
                    return
        prints += _prints(call, rows)
        first += rows
    if len(prints) > 1 and len(set(prints)) == 1:
        yield Problem(
            ERROR,
            f"all {len(prints)} {part.name} inputs looked at are the same; expected different ones; "
            "check how they are read",
        )
        return
    calls = [call for call, _, _ in part.batches]
    if images := [t.float() for call in calls for t in tensors_of(call) if t.ndim == 4 and t.shape[1] in (1, 3)]:
        yield from _images(part, images, normalisation)
    if any(_ids(call) is not None for call in calls):
        yield from _tokens(part, tokenizer, models)


def _images(part: LoaderSamples, images: list[Tensor], normalisation: Any) -> Iterator[Problem]:
    low, high = min(float(x.min()) for x in images), max(float(x.max()) for x in images)
    expected = ", ".join(f"{n} {numbers(v)}" for n, v in zip(("mean", "std"), normalisation or (), strict=False))
    if low >= 0 and high > 32 and all(bool((x == x.round()).all()) for x in images):
        yield Problem(
            WARNING,
            f"{part.name} images have whole values up to {high:g}, raw pixels it seems; expected normalised ones"
            f"{f' ({expected})' if expected else ''}; divide by 255 and normalise",
        )
    elif normalisation and len(normalisation[0]):
        values = torch.cat([x.reshape(len(x), -1)[:, :4096].reshape(-1) for x in images])
        mean, std = float(values.mean()), float(values.std())
        if (low >= 0 and high <= 1) or abs(mean) > 1.5 or not 0.2 < std < 4:
            yield Problem(
                WARNING,
                f"{part.name} images have mean {mean:.3g} and std {std:.3g} in [{low:.3g}, {high:.3g}], about 0 and 1 "
                f"were expected once normalised with {expected}; normalise them, and once only",
            )


def _tokens(part: LoaderSamples, tokenizer: Any, models: Mapping[str, nn.Module]) -> Iterator[Problem]:
    tables = {name: rows for name, m in models.items() if (rows := embedding_rows(m)) is not None}
    limits = {name: _positions(m) for name, m in models.items()}
    pad = _lone_pad(tokenizer)
    first = padded = places = counted = 0
    for call, _, rows in part.batches:
        ids = _ids(call)
        if ids is None:
            continue
        mask = call[1].get("attention_mask")
        read = torch.ones_like(ids) if mask is None or mask.shape != ids.shape else mask
        for name, size in tables.items():
            wrong = ((ids < 0) | (ids >= size)).nonzero()
            if len(wrong):
                at = tuple(wrong[0].tolist())
                yield Problem(
                    ERROR,
                    f"{part.name} sample {first + at[0]} has the token id {int(ids[at])}, the {name}'s embedding has "
                    f"{size} rows; use the {name}'s own tokenizer",
                )
                return
            limit = limits[name]
            if limit is not None and ids.shape[1] > limit:
                yield Problem(
                    ERROR,
                    f"{part.name} texts have {ids.shape[1]} tokens, the {name}'s position embedding is for "
                    f"{limit}; set max_length to that at most",
                )
                return
        text = read.bool() if pad is None else read.bool() & (ids != pad)
        empty = (~text.any(1)).nonzero()
        if len(empty):
            what = "its attention_mask is all zero" if not read[int(empty[0])].any() else "all of it is padding"
            yield Problem(
                ERROR,
                f"{part.name} sample {first + int(empty[0])} has no token to read, {what}; "
                "remove empty texts, and check the mask",
            )
            return
        first, padded, places = first + rows, padded + int((~text).sum()), places + text.numel()
        counted += 0 if pad is None else int((read.bool() & (ids == pad)).sum())
    if counted:
        yield Problem(
            WARNING,
            f"{counted:,} padding tokens of the {part.name} texts are not masked out, expected none; "
            "pass the tokenizer's attention_mask",
        )
    if places and padded > 0.9 * places:
        yield Problem(
            WARNING,
            f"{padded / places:.0%} of the {part.name} tokens are padding, expected most to be text; "
            "pad each batch to its longest, or lower max_length",
        )


def find_label_problems(part: LoaderSamples, task: str, classes: int, names: Sequence[str]) -> Iterator[Problem]:
    """Find labels that ``task`` cannot use; anything found keeps the answers from being scored."""
    if not part.samples:
        return
    if any(not isinstance(labels, Tensor) for _, labels, _ in part.batches):
        yield Problem(
            ERROR, f"{part.name} batches have no labels; expected a tensor beside the inputs; give (inputs, labels)"
        )
        return
    for call, labels, rows in part.batches:
        dims = {"classification": (1,), "multilabel": (2,), "masked_lm": (2,)}.get(task, (1, 2))
        ids = _ids(call)
        fits = labels.ndim in dims and len(labels) == rows
        fits = fits and (task != "masked_lm" or ids is None or labels.shape == ids.shape)
        fits = fits and (task not in ("multilabel", "regression") or labels.numel() == rows * classes)
        if not fits:
            shape = {"classification": "(batch,)", "masked_lm": "that of the tokens"}.get(task, f"(batch, {classes})")
            yield Problem(
                ERROR,
                f"{part.name} labels have the shape {tuple(labels.shape)} for {rows} inputs, task={task!r} expects "
                f"{shape}; reshape them",
            )
            return
    shapes = {labels.shape[1:] for _, labels, _ in part.batches}
    every = part.labels() if len(shapes) == 1 else torch.cat([b[1].detach().cpu().reshape(-1) for b in part.batches])
    if task in ("multilabel", "regression"):
        bad = ~every.float().isfinite() if task == "regression" else ~((every >= 0) & (every <= 1))
        if bad.any():
            sample = int(bad.reshape(len(every), -1).any(1).nonzero()[0])
            expected = "finite numbers" if task == "regression" else "0 to 1"
            yield Problem(
                ERROR,
                f"{part.name} sample {sample} has the label {float(every[bad][0]):g}, expected {expected}; "
                "mend the labels",
            )
        return
    if every.is_floating_point() or every.dtype == torch.bool:
        yield Problem(
            ERROR, f"{part.name} labels are {every.dtype}, task={task!r} expects class numbers; convert with .long()"
        )
        return
    kept = every[every != IGNORED]
    if not len(kept):
        yield Problem(
            ERROR,
            f"all {part.name} labels looked at are {IGNORED}, which is ignored; expected class numbers; "
            "check how labels are made",
        )
        return
    if ((kept < 0) | (kept >= classes)).any():
        at = int(((every != IGNORED) & ((every < 0) | (every >= classes))).reshape(len(every), -1).any(1).nonzero()[0])
        wrong = int(kept[(kept < 0) | (kept >= classes)][0])
        place = f"sample {at}" if len(every) == part.samples else "samples"
        yield Problem(
            ERROR,
            f"{part.name} {place} has the label {wrong}, expected 0 to {classes - 1}; "
            "number the classes from zero, or set num_classes",
        )
    elif task == "classification" and len(kept) >= MIN_SAMPLES and len(kept.unique()) == 1:
        yield Problem(
            WARNING,
            f"all {len(kept)} {part.name} labels looked at are {name_of(int(kept[0]), names)}, expected several; "
            "shuffle the samples, or check the labels",
        )


def find_shared_samples(ours: LoaderSamples, held_out: LoaderSamples, train: Any, validation: Any) -> Iterator[Problem]:
    """Find samples that are in both parts: by their place in one data set, else by their inputs."""
    if not ours.samples or not held_out.samples:
        return
    advice = "so validation flatters; hold other samples out"
    (base, rows), (other, others) = (_source(loader) for loader in (train, validation))
    if base is not None and base is other:
        shared = len(rows & others) if rows is not None and others is not None else len(others or rows or base)
        if shared > 0.01 * (len(base) if others is None else len(others)):
            yield Problem(WARNING, f"{shared:,} validation samples are training samples too, a leak, {advice}")
        return
    seen, asked = ({p for call, _, n in part.batches for p in _prints(call, n)} for part in (ours, held_out))
    shared = len(seen & asked)
    total = _length(getattr(train, "dataset", None)) or ours.samples
    share = shared / len(asked) * max(1.0, total / ours.samples)  # one in ten looked at finds one in ten
    if shared > 0.01 * len(asked) or (shared >= 3 and share > 0.01):
        yield Problem(
            WARNING,
            f"{shared} of {len(asked)} validation inputs looked at are among {len(seen)} training inputs, a leak, "
            f"{advice}",
        )


def find_single_sample_batches(student: nn.Module | None, part: LoaderSamples, loader: Any) -> Iterator[Problem]:
    """Find training batches of one sample, where the student has batch norm."""
    if student is None or not part.sizes or not any(isinstance(m, _BatchNorm) for m in student.modules()):
        return
    size, total = getattr(loader, "batch_size", None), _length(getattr(loader, "dataset", None))
    last = bool(size and total and not getattr(loader, "drop_last", False) and total % size == 1)
    if 1 in part.sizes or last:
        yield Problem(
            WARNING,
            f"{'the last' if 1 not in part.sizes else 'a'} training batch has one sample, batch norm expects several; "
            "set drop_last=True, or another batch_size",
        )


def tensors_of(tree: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists and mappings, lone numbers aside."""
    return [x for x in torch.utils._pytree.tree_leaves(tree) if isinstance(x, Tensor) and x.ndim]


def _rows(call: Call) -> int:
    return next((len(t) for t in tensors_of(call)), 0)


def _cut(tree: Any, part: slice, rows: int) -> Any:
    return map_tensors(lambda t: t[part] if t.ndim and len(t) == rows else t, tree)


def _ids(call: Call) -> Tensor | None:
    """Return token ids, (batch, length), of a call that has some."""
    ids = call[1].get("input_ids", call[0][0] if call[0] else None)
    return ids if isinstance(ids, Tensor) and ids.ndim == 2 and ids.dtype in (torch.int64, torch.int32) else None


def _prints(call: Call, rows: int) -> list[bytes]:
    """Return a digest of each sample's inputs; padding is no part of it."""
    ids, mask = _ids(call), call[1].get("attention_mask")
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


def embedding_rows(model: nn.Module) -> int | None:
    """Return the rows of a model's token embedding, if it has one."""
    table = None
    with contextlib.suppress(Exception):  # transformers raises where a model has none
        table = model.get_input_embeddings()  # type: ignore[operator]
    tables = [table] if table is not None else [m for m in model.modules() if isinstance(m, nn.Embedding)]
    sizes = [len(t.weight) for t in tables if isinstance(t, nn.Embedding) and t.weight.ndim == 2]
    return max(sizes, default=None)


def _positions(model: nn.Module) -> int | None:
    """Return the rows of a model's position embedding, if it learns one."""
    tables = (m for name, m in model.named_modules() if name.endswith("position_embeddings"))
    return next((m.num_embeddings for m in tables if isinstance(m, nn.Embedding)), None)


def _lone_pad(tokenizer: Any) -> int | None:
    """Return the id of the padding token, unless it has another meaning too."""
    pad = getattr(tokenizer, "pad_token_id", None)
    others = [getattr(tokenizer, f"{role}_token_id", None) for role in ("eos", "unk", "bos", "cls", "sep")]
    return pad if isinstance(pad, int) and pad not in others else None


def _source(loader: Any) -> tuple[Any, set[int] | None]:
    """Return a loader's data set, and which of its samples where it is a subset; ``None`` if that cannot be known."""
    dataset = getattr(loader, "dataset", None)
    sampler = getattr(loader, "sampler", None)
    if _length(dataset) is None or type(sampler) not in (SequentialSampler, RandomSampler):
        return None, None
    if isinstance(dataset, Subset):
        return dataset.dataset, {int(i) for i in dataset.indices}
    return dataset, None


def _length(dataset: Any) -> int | None:
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
