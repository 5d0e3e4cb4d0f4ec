"""Checks of models, data and settings before the first step of a fit, in a few seconds."""

import contextlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lighten.distillation.preflight_answers import find_answer_problems
from lighten.distillation.preflight_data import (
    embedding_rows,
    find_input_problems,
    find_label_problems,
    find_shared_samples,
    find_single_sample_batches,
)
from lighten.distillation.preflight_samples import ERROR, WARNING, LoaderSamples, Problem, collect, numbers
from lighten.distillation.settings import LABELS, DistilSettings
from lighten.distillation.teacher import check_no_shared_parameters
from lighten.distillation.terms import check_terms
from lighten.errors import UserError
from lighten.schedule import Setting
from lighten.tasks import task_of
from lighten.tasks.task import Task
from lighten.utils.batch import BatchFormat
from lighten.utils.modules import modes_kept
from lighten.utils.preserve import random_state_kept

_SOFTENED = ("soft_labels", "dkd", "dist")
"""Losses that the temperature acts on."""

__all__ = ["Problem", "preflight"]


def preflight(
    student: nn.Module | None,
    teacher: nn.Module | None,
    *,
    train: Iterable[Any],
    validation: Iterable[Any],
    task: str | Task = "classification",
    num_classes: int,
    class_names: Sequence[str] = (),
    temperature: Setting | None = DistilSettings.temperature,
    losses: Mapping[str, Setting] | None = None,
    teacher_classes: Sequence[str] = (),
    teacher_accuracy: float | None = None,
    tokenizer: Any = None,
    teacher_tokenizer: Any = None,
    normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
    teacher_normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
    samples: int = 512,
    seconds: float = 8.0,
    keyed: bool = False,
) -> list[Problem]:
    """Return what looks wrong with a fit that is about to begin, errors first; nothing where it looks sound.

    Looks at the first batches of both loaders and runs the teacher on those of validation. Weights, modes, gradients,
    places of loaders and random states are left as found.

    Args:
        student: on any device; ``None`` leaves out what concerns it.
        teacher: likewise.
        train: gives batches as ``lighten.utils.batch.BatchFormat`` takes them, from the start each time it is iterated.
        validation: likewise.
        task: what is answered, as ``DistillationModule`` takes it.
        num_classes: outputs that models should have.
        class_names: of the data, in the order of their labels.
        temperature: of the soft labels, a number or a schedule; by default the task's.
        losses: weights by name; ``None`` for those that ``DistillationModule`` takes by default.
        teacher_classes: names of the teacher's outputs in order; the ``LABEL_0`` of ``transformers`` say nothing.
        teacher_accuracy: what the teacher is said to reach, a share in [0, 1].
        tokenizer: of the data, with ``get_vocab()``, or a mapping of tokens to ids.
        teacher_tokenizer: the one that the teacher was trained with.
        normalisation: mean and standard deviation per channel that the data are normalised with.
        teacher_normalisation: those that the teacher was trained with.
        samples: to look at, of each loader at most.
        seconds: after which no further batch is fetched or run.
        keyed: the third of three parts of a batch are keys.
    """
    task = task_of(task)
    temperature = task.temperature if temperature is None else temperature
    end, form = time.monotonic() + seconds, BatchFormat(keyed=keyed)
    parts = LoaderSamples("training"), LoaderSamples("validation")
    models = {name: m for name, m in (("teacher", teacher), ("student", student)) if m is not None}
    found = [
        *_settings(task, temperature, losses, teacher is not None),
        *_models(student, teacher),
        *_classes(num_classes, class_names, teacher_classes),
        *_tokenizers(tokenizer, teacher_tokenizer, models),
        *_normalisations(normalisation, teacher_normalisation),
    ]
    with torch.no_grad(), _untouched(models.values(), (train, validation)):
        for part, loader, share in zip(parts, (train, validation), (0.25, 0.33), strict=True):
            collect(part, loader, samples, time.monotonic() + share * (end - time.monotonic()), form)
            found += find_input_problems(part, normalisation, tokenizer, models)
            labelled = not (wrong := list(find_label_problems(part, task, num_classes, class_names)))
            found += wrong
        found += [
            *find_shared_samples(*parts, train, validation),
            *find_single_sample_batches(student, parts[0], train),
        ]
        readable = parts[1].batches and not any(f.severity == ERROR and "embedding" in f.message for f in found)
        softened = temperature if losses is None or any(name in _SOFTENED for name in losses) else None
        for name, model in models.items() if readable else ():
            if not any(p.is_meta or nn.parameter.is_lazy(p) for p in model.parameters()):
                found += find_answer_problems(
                    name, model, parts[1], end, task, num_classes, class_names, softened, teacher_accuracy, labelled
                )
    return sorted(dict.fromkeys(found), key=lambda f: f.severity != ERROR)


def too_many_words(tokenizer: Any, name: str, model: nn.Module) -> str | None:
    """Return what is wrong where a tokenizer has more words than a model's embedding has rows, ``None`` if it has not.

    Args:
        tokenizer: with ``get_vocab()``, or a mapping of tokens to ids.
        name: of the model, in the message.
        model: one without a token embedding takes all words.
    """
    vocabulary, rows = _vocabulary(tokenizer), embedding_rows(model)
    token = max(vocabulary, key=lambda t: vocabulary[t], default="")
    if rows is None or not vocabulary or vocabulary[token] < rows:
        return None
    return (
        f"tokenizer gives ids up to {vocabulary[token]} ({token!r}), the {name}'s embedding has {rows} rows; "
        f"use the {name}'s own tokenizer"
    )


def _settings(
    task: Task, temperature: Setting, losses: Mapping[str, Setting] | None, teacher: bool
) -> Iterator[Problem]:
    try:
        weights = check_terms(losses, 0.5, temperature, teacher=teacher, task=task)
    except UserError as error:
        yield Problem(ERROR, str(error))
        return
    if teacher and all(name in LABELS for name in weights):
        yield Problem(
            WARNING,
            f"losses={dict(losses or {})} gives the teacher no weight, so it has no effect; "
            "give soft_labels a weight above zero, or leave the teacher out",
        )


def _models(student: nn.Module | None, teacher: nn.Module | None) -> Iterator[Problem]:
    if student is not None and not any(p.requires_grad for p in student.parameters()):
        yield Problem(ERROR, "no parameter of the student requires a gradient; expected some; call requires_grad_()")
    if teacher is not None and any(p.is_meta for p in teacher.parameters()):
        yield Problem(ERROR, "teacher has no weights, it is on the meta device; build it outside of torch.device")
    if student is None or teacher is None:
        return
    try:
        check_no_shared_parameters(student, teacher)
    except UserError as error:
        yield Problem(ERROR, str(error))
        return
    memory = {_memory(p): name for name, p in teacher.named_parameters() if _memory(p)}
    shared = [name for name, p in student.named_parameters() if _memory(p) in memory]
    if shared:
        yield Problem(
            ERROR,
            f"student and teacher share the memory of {len(shared)} parameters ({shared[0]!r} is one), expected none: "
            "training would change the teacher; give the student its own with copy.deepcopy",
        )
    small, large = (sum(p.numel() for p in m.parameters()) for m in (teacher, student))
    if large > small and not any(nn.parameter.is_lazy(p) for p in student.parameters()):
        yield Problem(
            WARNING,
            f"student has {large:,} parameters, its teacher {small:,}; expected a smaller student; "
            "swap them, or choose a larger teacher",
        )


def _classes(num_classes: int, ours: Sequence[str], theirs: Sequence[str]) -> Iterator[Problem]:
    if ours and len(ours) != num_classes:
        yield Problem(
            ERROR, f"the data name {len(ours)} classes, num_classes={num_classes}; name each class once, in order"
        )
    if not theirs:
        return
    if len(theirs) != num_classes:
        yield Problem(
            ERROR, f"teacher knows {len(theirs)} classes, expected {num_classes}; choose a teacher of this task"
        )
        return
    if not ours or any(all(re.fullmatch(r"(?i)label_?\d+", name) for name in names) for names in (ours, theirs)):
        return
    plain = [[re.sub(r"[\W_]+", "", name.casefold()) or name for name in names] for names in (ours, theirs)]
    if plain[0] == plain[1]:
        return
    if missing := [name for name, key in zip(ours, plain[0], strict=False) if key not in plain[1]]:
        other = [name for name, key in zip(theirs, plain[1], strict=True) if key not in plain[0]]
        yield Problem(
            ERROR,
            f"teacher does not know the class {missing[0]!r}{f', but {other[0]!r}' if other else ''}; "
            f"expected the data's {num_classes} classes; choose a teacher of this task",
        )
        return
    first = next(i for i, (a, b) in enumerate(zip(*plain, strict=False)) if a != b)
    yield Problem(
        ERROR,
        f"teacher's classes come in another order: number {first} is {theirs[first]!r}, in the data {ours[first]!r}; "
        "reorder the rows of the teacher's last layer, or the data's classes",
    )


def _tokenizers(ours: Any, theirs: Any, models: Mapping[str, nn.Module]) -> Iterator[Problem]:
    vocabulary, other = _vocabulary(ours), _vocabulary(theirs)
    if vocabulary and other:
        differs = [t for t in vocabulary if other.get(t) != vocabulary[t]] or [t for t in other if t not in vocabulary]
        if differs:
            token = differs[0]
            ids = [f"id {v[token]}" if token in v else "unknown" for v in (other, vocabulary)]
            yield Problem(
                ERROR,
                f"teacher was trained with another tokenizer: {len(differs):,} tokens differ, {token!r} is {ids[0]} "
                f"there and {ids[1]} in the data; tokenize the data with the teacher's",
            )
        special = [_roles(t) for t in (theirs, ours)]
        if not differs and all(special):
            for role in sorted({**special[0], **special[1]}):
                pair = [str(s.get(role)) for s in special]
                if pair[0] != pair[1]:
                    yield Problem(
                        ERROR,
                        f"teacher's tokenizer has {role}={pair[0]!r}, the data's has {pair[1]!r}; "
                        "tokenize the data with the teacher's",
                    )
                    break
    for name, model in models.items():
        if (problem := too_many_words(ours, name, model)) is not None:
            yield Problem(ERROR, problem)


def _normalisations(
    ours: tuple[Sequence[float], Sequence[float]] | None, theirs: tuple[Sequence[float], Sequence[float]] | None
) -> Iterator[Problem]:
    if not ours or not theirs or not len(ours[0]) or not len(theirs[0]):
        return
    pairs = [([float(x) for x in a], [float(x) for x in b]) for a, b in zip(ours, theirs, strict=True)]
    if any(len(a) != len(b) or max(abs(x - y) for x, y in zip(a, b, strict=True)) > 1e-3 for a, b in pairs):
        text = [f"mean {numbers(mean)} and std {numbers(std)}" for mean, std in (theirs, ours)]
        yield Problem(
            ERROR,
            f"teacher was trained on inputs normalised with {text[0]}, the data are with {text[1]}; "
            "normalise the data as the teacher's were",
        )


@contextlib.contextmanager
def _untouched(models: Iterable[nn.Module], loaders: Sequence[Any]) -> Iterator[None]:
    """Put models in eval mode; afterwards modes, random states and places of loaders are as they were."""
    own = [getattr(x, "generator", None) for loader in loaders for x in (loader, getattr(loader, "sampler", None))]
    generators = [(g, g.get_state()) for g in own if isinstance(g, torch.Generator)]
    places = [(x, x.state_dict()) for x in loaders if hasattr(x, "state_dict") and hasattr(x, "load_state_dict")]
    try:
        with random_state_kept(nn.ModuleList(models)), modes_kept(*models):
            for model in models:
                model.eval()
            yield
    finally:
        for generator, state in generators:
            generator.set_state(state)
        for loader, place in places:
            loader.load_state_dict(place)


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    if tokenizer is None:
        return {}
    found = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else tokenizer
    return dict(found) if isinstance(found, Mapping) else {}


def _roles(tokenizer: Any) -> dict[str, Any]:
    """Return the special tokens by role, such as ``pad_token``."""
    found = getattr(tokenizer, "special_tokens_map", None)
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, Mapping) else {}


def _memory(parameter: Tensor) -> int:
    return 0 if parameter.is_meta or not parameter.numel() else parameter.untyped_storage().data_ptr()
