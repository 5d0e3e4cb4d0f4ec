"""What models make of a few batches before a fit: whether they can read them, and whether a teacher knows its task."""

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lighten.distillation.loss import IGNORED
from lighten.distillation.preflight_data import ERROR, MIN_SAMPLES, WARNING, LoaderSamples, Problem, name_of, tensors_of
from lighten.distillation.teacher import filter_kwargs
from lighten.errors import UserError
from lighten.schedule import Setting, check_setting
from lighten.utils.inputs import logits_of, map_tensors


def find_answer_problems(
    who: str,
    model: nn.Module,
    part: LoaderSamples,
    end: float,
    task: str,
    classes: int,
    names: Sequence[str],
    temperature: Setting | None,
    claim: float | None,
    labelled: bool,
) -> Iterator[Problem]:
    """Run a model, the student on a few samples only, and judge what it says."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    softened = _temperatures(temperature) if who == "teacher" and task in ("classification", "masked_lm") else None
    said: list[Tensor] = []
    truth: list[Tensor] = []
    peaks: list[Tensor] = []
    spread: list[Tensor] = []
    low = high = torch.zeros(0)
    for start, call, labels in part.chunks():
        moved = map_tensors(lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype), call)
        args, kwargs = filter_kwargs(model, moved)
        try:
            logits = logits_of(model(*args, **kwargs)).detach().float().cpu()
        except Exception as error:  # whatever a model says to data that are not its own
            line = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors_of(call))
            yield Problem(ERROR, f"{who} cannot read inputs of shapes {shapes} ({line}); choose one for these data")
            return
        if logits.shape[-1] != classes or logits.ndim != (3 if task == "masked_lm" else 2):
            one = "one class alone, which teaches nothing" if logits.shape[-1] == 1 else f"{logits.shape[-1]} classes"
            yield Problem(
                ERROR,
                f"{who} gives logits of shape {tuple(logits.shape)}, {one}; expected {classes} a sample; "
                "choose a model of this task",
            )
            return
        bad = (~logits.reshape(len(logits), -1).isfinite()).any(1).nonzero()
        if len(bad):
            yield Problem(
                ERROR,
                f"{who} gives logits that are not finite for {part.name} sample {start + int(bad[0])}; expected "
                "numbers; check its weights and precision",
            )
            return
        if who == "student":
            return
        if task == "masked_lm" and labelled:
            logits, labels = logits[labels.cpu() != IGNORED], labels[labels != IGNORED]
        rows = logits.reshape(-1, classes)
        if len(rows):
            low = rows.amin(0) if not len(low) else torch.minimum(low, rows.amin(0))
            high = rows.amax(0) if not len(high) else torch.maximum(high, rows.amax(0))
            spread.append(rows.amax(1) - rows.amin(1))
            said.append(rows.argmax(1))
            truth += [labels.cpu().reshape(-1)] if labelled else []
            peaks += [torch.stack([_peak(rows, t) for t in softened])] if softened else []
        if time.monotonic() > end:
            break
    count = sum(len(x) for x in said)
    if not count:
        return
    size = max(float(high.abs().max()), float(low.abs().max()), 1e-6)
    if classes > 1 and task != "regression" and float(torch.cat(spread).max()) < 1e-5 * size:
        yield Problem(
            ERROR, "teacher's logits are all equal, it tells nothing; expected a trained one; load its weights"
        )
    elif count > 1 and float((high - low).max()) < 1e-5 * size:
        yield Problem(
            ERROR, "teacher answers the same whatever the input, it is dead; expected a trained one; load its weights"
        )
    elif task in ("classification", "masked_lm"):
        if peaks:
            yield from _softness(torch.cat(peaks, 1), classes, temperature)
        if truth:
            yield from _accuracy(torch.cat(said), torch.cat(truth), classes, names, claim, task)


def _softness(peaks: Tensor, classes: int, temperature: Setting | None) -> Iterator[Problem]:
    """Judge the largest softened probability of each sample, (2, samples), at the lowest and highest temperature."""
    sharp, flat = float((peaks[1] > 0.999).float().mean()), float((peaks[0] * classes - 1).max())
    if sharp > 0.95 and classes > 1:
        yield Problem(
            WARNING,
            f"temperature={temperature} leaves {sharp:.0%} of the teacher's soft labels as hard as labels (above "
            "0.999), expected doubt to learn from; raise the temperature",
        )
    elif flat < 0.01 and classes > 1:
        yield Problem(
            WARNING,
            f"temperature={temperature} makes all soft labels uniform within {flat:.2%}, expected differences to "
            "learn from; lower the temperature, or check that the teacher is trained",
        )


def _accuracy(
    said: Tensor, labels: Tensor, classes: int, names: Sequence[str], claim: float | None, task: str
) -> Iterator[Problem]:
    if claim is not None and not 0 <= claim <= 1:
        yield Problem(ERROR, f"teacher_accuracy={claim}, expected a share in [0, 1]; divide percent by 100")
        claim = None
    said, labels = said[labels != IGNORED], labels[labels != IGNORED].long()
    count = len(labels)
    if count < MIN_SAMPLES:
        return
    what = "samples" if task == "classification" else "tokens"
    accuracy = float((said == labels).float().mean())
    counts = labels.bincount(minlength=classes)
    common = float(counts.max()) / count
    even = 1 / classes
    if task == "classification" and (swapped := _swapped(said, labels, classes, names)):
        yield Problem(ERROR, swapped)
    elif even > accuracy + 2 * _error(even, count):
        yield Problem(
            ERROR,
            f"teacher is right in {accuracy:.1%} of {count} validation {what}, worse than chance ({even:.1%}): labels "
            "shuffled, or another label order? Compare its classes with the data's",
        )
    elif common < 1 and common > accuracy + 2 * _error(common, count):
        yield Problem(
            WARNING,
            f"teacher is right in {accuracy:.1%} of {count} validation {what}, worse than chance: {common:.1%} are "
            f"{name_of(int(counts.argmax()), names)}: labels shuffled, or untrained? Compare classes, or train it",
        )
    elif claim is not None and accuracy < claim - max(0.05, 3 * _error(claim, count)):
        grave = accuracy - even < 0.5 * (claim - even)
        yield Problem(
            ERROR if grave else WARNING,
            f"teacher is right in {accuracy:.1%} of {count} validation {what}, {claim:.1%} was claimed; "
            "check that inputs, tokenizer and classes are those it was trained with",
        )
    if len(said.unique()) == 1 and common < 0.9:
        yield Problem(
            WARNING,
            f"teacher answers {name_of(int(said[0]), names)} for all {count} validation {what}, expected several "
            "classes; train it, or check its head",
        )


def _swapped(said: Tensor, labels: Tensor, classes: int, names: Sequence[str]) -> str | None:
    """Tell of classes whose answers are mostly labelled as another, in a closed circle; ``None`` if there are none."""
    table = (said * classes + labels).bincount(minlength=classes**2).view(classes, classes)
    answered, (most, label) = table.sum(1), table.max(1)
    moved = ((answered >= 8) & (most > 0.6 * answered) & (label != torch.arange(classes))).nonzero()[:, 0]
    if not len(moved) or not torch.equal(label[moved].sort().values, moved):
        return None
    first = int(moved[0])
    return (
        f"teacher's label order seems to be another: {int(most[first])} of {int(answered[first])} validation samples "
        f"it calls {name_of(first, names)} are labelled {name_of(int(label[first]), names)}, {len(moved)} classes are "
        "swapped so; reorder the rows of its last layer, or the data's classes"
    )


def _temperatures(temperature: Setting | None) -> tuple[float, float] | None:
    """Return the lowest and the highest temperature of a fit; ``None`` where they are refused anyway."""
    try:
        values = check_setting("temperature", temperature)
    except UserError:
        return None
    return (min(values), max(values)) if min(values) > 0 else None


def _peak(rows: Tensor, temperature: float) -> Tensor:
    """Return the largest softened probability of each row, without all the others."""
    return (rows.amax(1) / temperature - (rows / temperature).logsumexp(1)).exp()


def _error(share: float, count: int) -> float:
    """Return the standard error of a share over ``count`` samples."""
    return (max(share * (1 - share), 0.25 / count) / count) ** 0.5
