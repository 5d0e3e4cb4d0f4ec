"""Checks of inputs, tokens, labels and splits before a fit."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lighten.distillation.batch_checks import first_non_finite
from lighten.distillation.preflight_samples import (
    ERROR,
    MIN_SAMPLES,
    WARNING,
    LoaderSamples,
    Problem,
    digests_of,
    length_of,
    name_of,
    numbers,
    source_of,
    tensors_of,
    token_ids,
)
from lighten.errors import UserError
from lighten.tasks.task import Task


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
                bad = first_non_finite(tensor)
                if bad is not None:
                    yield Problem(
                        ERROR,
                        f"{part.name} sample {first + bad} has inputs that are not finite; "
                        "expected numbers; remove or fix it",
                    )
                    return
        prints += digests_of(call, rows)
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
    if any(token_ids(call) is not None for call in calls):
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
        ids = token_ids(call)
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


def find_label_problems(part: LoaderSamples, task: Task, outputs: int, names: Sequence[str]) -> Iterator[Problem]:
    """Find labels that ``task`` cannot use; anything found keeps the answers from being scored."""
    if not part.samples:
        return
    if any(not isinstance(labels, Tensor) for _, labels, _ in part.batches):
        yield Problem(
            ERROR, f"{part.name} batches have no labels; expected a tensor beside the inputs; give (inputs, labels)"
        )
        return
    problem = _shape_problem(part, task, outputs)
    if problem is not None:
        yield problem
        return
    try:
        for _, labels, _ in part.batches:
            task.check_labels(labels)
    except UserError as error:
        yield Problem(ERROR, f"{part.name} {error}")
        return
    yield from _value_problems(part, task, outputs, names)


def _shape_problem(part: LoaderSamples, task: Task, outputs: int) -> Problem | None:
    for call, labels, rows in part.batches:
        ids = token_ids(call)
        expected = task.label_shape(rows, outputs, None if ids is None else ids.shape)
        if expected is None or _has_shape(labels, expected):
            continue
        return Problem(
            ERROR,
            f"{part.name} labels have the shape {tuple(labels.shape)} for {rows} inputs, task={task.name!r} expects "
            f"{_shape_text(expected, tokens=ids is not None and task.per_token)}; reshape them",
        )
    return None


def _has_shape(labels: Tensor, expected: Sequence[int | None]) -> bool:
    """Return whether labels have that shape; of one number a sample, the dimension of length one may be left out."""
    sizes = [size for size in expected if size is not None]
    if len(sizes) == len(expected) and tuple(expected[1:]) == (1,) and tuple(labels.shape) == tuple(expected[:1]):
        return True
    fits = labels.ndim == len(expected)
    return fits and all(size in (None, found) for size, found in zip(expected, labels.shape, strict=True))


def _shape_text(expected: Sequence[int | None], *, tokens: bool) -> str:
    if tokens:
        return "that of the tokens"
    sizes = ["batch", *("any" if size is None else str(size) for size in expected[1:])]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def _value_problems(part: LoaderSamples, task: Task, outputs: int, names: Sequence[str]) -> Iterator[Problem]:
    """Find labels that are all left out, out of range or all the same."""
    kept = _kept(part, task)
    if not len(kept):
        yield Problem(ERROR, f"all {part.name} labels looked at are {task.none_text}")
        return
    wrong = next(_out_of_range(part, task, outputs), None)
    if wrong is not None:
        yield Problem(ERROR, f"{part.name} {wrong}, expected {task.range_text(outputs)}")
    elif len(kept) >= MIN_SAMPLES and kept.ndim <= 2 and len(kept.unique(dim=0)) == 1 and not task.next_tokens:
        value = name_of(int(kept[0]), names) if task.ranks else kept[0].tolist()
        yield Problem(
            WARNING,
            f"all {len(kept)} {part.name} labels looked at are {value}, expected several; "
            "shuffle the samples, or check the labels",
        )


def _kept(part: LoaderSamples, task: Task) -> Tensor:
    """Return the labels that count, on the CPU; those of batches of different sizes one by one."""
    each = []
    for _, labels, _ in part.batches:
        labels = labels.detach().cpu()
        there = task.counted(labels)
        each.append(labels if there is None else labels[there])
    return torch.cat(each if len({x.shape[1:] for x in each}) == 1 else [x.reshape(-1) for x in each])


def _out_of_range(part: LoaderSamples, task: Task, outputs: int) -> Iterator[str]:
    """Yield in words which sample has which label that is out of range."""
    first = 0
    for _, labels, rows in part.batches:
        labels = labels.detach().cpu()
        bad = task.bad_labels(labels, outputs)
        if bad is not None and bool(bad.any()):
            sample = first + int(bad.reshape(len(labels), -1).any(1).nonzero()[0])
            yield f"sample {sample} has the {task.bad_text(labels, bad)}"
        first += rows


def find_shared_samples(ours: LoaderSamples, held_out: LoaderSamples, train: Any, validation: Any) -> Iterator[Problem]:
    """Find samples that are in both parts: by their place in one data set, else by their inputs."""
    if not ours.samples or not held_out.samples:
        return
    advice = "so validation flatters; hold other samples out"
    (base, rows), (other, others) = (source_of(loader) for loader in (train, validation))
    if base is not None and base is other:
        shared = len(rows & others) if rows is not None and others is not None else len(others or rows or base)
        if shared > 0.01 * (len(base) if others is None else len(others)):
            yield Problem(WARNING, f"{shared:,} validation samples are training samples too, a leak, {advice}")
        return
    seen, asked = ({p for call, _, n in part.batches for p in digests_of(call, n)} for part in (ours, held_out))
    shared = len(seen & asked)
    total = length_of(getattr(train, "dataset", None)) or ours.samples
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
    size, total = getattr(loader, "batch_size", None), length_of(getattr(loader, "dataset", None))
    last = bool(size and total and not getattr(loader, "drop_last", False) and total % size == 1)
    if 1 in part.sizes or last:
        yield Problem(
            WARNING,
            f"{'the last' if 1 not in part.sizes else 'a'} training batch has one sample, batch norm expects several; "
            "set drop_last=True, or another batch_size",
        )


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
