"""Checks of inputs, tokens, labels and splits before a fit."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lighten.distillation.batch_checks import LABEL_DIMS, first_non_finite
from lighten.distillation.loss import IGNORED
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


def find_label_problems(part: LoaderSamples, task: str, classes: int, names: Sequence[str]) -> Iterator[Problem]:
    """Find labels that ``task`` cannot use; anything found keeps the answers from being scored."""
    if not part.samples:
        return
    if any(not isinstance(labels, Tensor) for _, labels, _ in part.batches):
        yield Problem(
            ERROR, f"{part.name} batches have no labels; expected a tensor beside the inputs; give (inputs, labels)"
        )
        return
    problem = _shape_problem(part, task, classes)
    if problem is not None:
        yield problem
        return
    shapes = {labels.shape[1:] for _, labels, _ in part.batches}
    every = part.labels() if len(shapes) == 1 else torch.cat([b[1].detach().cpu().reshape(-1) for b in part.batches])
    if task in ("multilabel", "regression"):
        yield from _number_problems(part.name, every, task)
    elif every.is_floating_point() or every.dtype == torch.bool:
        yield Problem(
            ERROR, f"{part.name} labels are {every.dtype}, task={task!r} expects class numbers; convert with .long()"
        )
    else:
        yield from _class_problems(part, every, task, classes, names)


def _shape_problem(part: LoaderSamples, task: str, classes: int) -> Problem | None:
    for call, labels, rows in part.batches:
        ids = token_ids(call)
        fits = labels.ndim in LABEL_DIMS.get(task, (1, 2)) and len(labels) == rows
        fits = fits and (task != "masked_lm" or ids is None or labels.shape == ids.shape)
        fits = fits and (task not in ("multilabel", "regression") or labels.numel() == rows * classes)
        if not fits:
            shape = {"classification": "(batch,)", "masked_lm": "that of the tokens"}.get(task, f"(batch, {classes})")
            return Problem(
                ERROR,
                f"{part.name} labels have the shape {tuple(labels.shape)} for {rows} inputs, task={task!r} expects "
                f"{shape}; reshape them",
            )
    return None


def _number_problems(part: str, labels: Tensor, task: str) -> Iterator[Problem]:
    """Find labels (samples, outputs) of a multi-label or regression task that are out of range."""
    bad = ~labels.float().isfinite() if task == "regression" else ~((labels >= 0) & (labels <= 1))
    if bad.any():
        sample = int(bad.reshape(len(labels), -1).any(1).nonzero()[0])
        expected = "finite numbers" if task == "regression" else "0 to 1"
        yield Problem(
            ERROR,
            f"{part} sample {sample} has the label {float(labels[bad][0]):g}, expected {expected}; fix the labels",
        )


def _class_problems(
    part: LoaderSamples, labels: Tensor, task: str, classes: int, names: Sequence[str]
) -> Iterator[Problem]:
    """Find class numbers that are all left out, out of range or all the same."""
    kept = labels[labels != IGNORED]
    if not len(kept):
        yield Problem(
            ERROR,
            f"all {part.name} labels looked at are {IGNORED}, which is ignored; expected class numbers; "
            "check how labels are made",
        )
        return
    wrong = (labels != IGNORED) & ((labels < 0) | (labels >= classes))
    if wrong.any():
        sample = int(wrong.reshape(len(labels), -1).any(1).nonzero()[0])
        place = f"sample {sample}" if len(labels) == part.samples else "samples"
        yield Problem(
            ERROR,
            f"{part.name} {place} has the label {int(labels[wrong][0])}, expected 0 to {classes - 1}; "
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
