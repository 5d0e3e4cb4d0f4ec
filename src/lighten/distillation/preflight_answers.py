"""Checks of what models answer to a few batches before a fit."""

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lighten.distillation.batch_checks import first_non_finite
from lighten.distillation.preflight_samples import (
    ERROR,
    MIN_SAMPLES,
    WARNING,
    LoaderSamples,
    Problem,
    name_of,
    tensors_of,
)
from lighten.distillation.teacher import filter_kwargs
from lighten.errors import UserError
from lighten.schedule import Setting, check_setting
from lighten.tasks.scorer import Scorer, scorer_of
from lighten.tasks.task import Task
from lighten.utils.inputs import Call, logits_of, map_tensors

NOTHING = 0.005
"""Share of what is right below which a teacher finds nothing."""


def find_answer_problems(
    who: str,
    model: nn.Module,
    part: LoaderSamples,
    end: float,
    task: Task,
    classes: int,
    names: Sequence[str],
    temperature: Setting | None,
    claim: float | None,
    labelled: bool,
) -> Iterator[Problem]:
    """Run a model, the student on a few samples only, and judge what it says."""
    answers = _Answers(_temperatures(temperature) if task.ranks else None)
    scorer = scorer_of(task, classes, torch.device("cpu")) if labelled and not task.ranks else None
    for start, call, labels in part.chunks():
        try:
            logits = _logits(model, call)
        except Exception as error:  # whatever a model says to data that are not its own
            line = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors_of(call))
            yield Problem(ERROR, f"{who} cannot read inputs of shapes {shapes} ({line}); choose one for these data")
            return
        problem = _output_problem(who, logits, task, classes, part.name, start)
        if problem is not None:
            yield problem
        if problem is not None or who == "student":
            return
        if scorer is not None:
            scorer.update(*task.rows(logits, labels.cpu()))
        if task.ranks and labelled:
            logits, labels = task.rows(logits, labels.cpu())
        rows = logits if task.ranks and labelled else logits.movedim(task.channel_dim, -1)
        answers.add(rows.reshape(-1, rows.shape[-1]), labels.cpu().reshape(-1) if labelled and task.ranks else None)
        if time.monotonic() > end:
            break
    problem = answers.dead(classes if task.ranks else 1)
    if problem is not None:
        yield problem
    elif task.ranks:
        if answers.peaks:
            yield from _softness(torch.cat(answers.peaks, 1), classes, temperature)
        if answers.truth:
            yield from _accuracy(torch.cat(answers.said), torch.cat(answers.truth), classes, names, claim, task)
    elif scorer is not None and part.samples >= MIN_SAMPLES:
        yield from _blind(scorer, task, part.samples)


def _blind(scorer: Scorer, task: Task, samples: int) -> Iterator[Problem]:
    """Judge a leading metric that is a share of what is right."""
    leading, value = task.reported[task.metric], (scorer.compute() or {}).get(task.metric)
    if leading.format == "percent" and value is not None and float(value) < NOTHING:
        yield Problem(
            WARNING,
            f"teacher's {leading.label} is {float(value):.2%} on {samples} validation samples, it finds nothing: "
            "untrained, other classes, or other inputs than it was trained with? Compare them, or train it",
        )


def _logits(model: nn.Module, call: Call) -> Tensor:
    """Return a model's logits on the CPU in float32, for inputs that are moved to its device and dtype."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    moved = map_tensors(lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype), call)
    args, kwargs = filter_kwargs(model, moved)
    return logits_of(model(*args, **kwargs)).detach().float().cpu()


def _output_problem(who: str, logits: Tensor, task: Task, classes: int, part: str, start: int) -> Problem | None:
    """Return what is wrong with the answers to a batch that begins with the sample ``start``."""
    whole = task.answer_dims in (None, logits.ndim)
    found = task.outputs_of(logits) if whole else logits.shape[-1]
    if found != classes or not whole:
        one = "one class alone, which teaches nothing" if found == 1 and task.ranks else f"{found} {task.outputs_are}"
        return Problem(
            ERROR,
            f"{who} gives {task.answers_are} of shape {tuple(logits.shape)}, {one}; expected {classes} a sample; "
            "choose a model of this task",
        )
    bad = first_non_finite(logits)
    if bad is not None:
        return Problem(
            ERROR,
            f"{who} gives logits that are not finite for {part} sample {start + bad}; expected "
            "numbers; check its weights and precision",
        )
    return None


class _Answers:
    """What a teacher has answered so far.

    Args:
        temperatures: lowest and highest, for the peaks of its soft labels.
    """

    def __init__(self, temperatures: tuple[float, float] | None) -> None:
        self.temperatures = temperatures
        self.said: list[Tensor] = []
        self.truth: list[Tensor] = []
        self.peaks: list[Tensor] = []
        self.spread: list[Tensor] = []
        self.low = self.high = torch.zeros(0)

    def add(self, rows: Tensor, labels: Tensor | None) -> None:
        """Add logits (rows, classes) and, where there are any, their labels (rows,)."""
        if not len(rows):
            return
        self.low = rows.amin(0) if not len(self.low) else torch.minimum(self.low, rows.amin(0))
        self.high = rows.amax(0) if not len(self.high) else torch.maximum(self.high, rows.amax(0))
        self.spread.append(rows.amax(1) - rows.amin(1))
        self.said.append(rows.argmax(1))
        self.truth += [] if labels is None else [labels]
        self.peaks += [torch.stack([_peak(rows, t) for t in self.temperatures])] if self.temperatures else []

    def dead(self, classes: int) -> Problem | None:
        """Return that the answers tell nothing, if so.

        Args:
            classes: that are ranked, among which one must stand out; 1 for other answers.
        """
        if not self.said:
            return None
        size = max(float(self.high.abs().max()), float(self.low.abs().max()), 1e-6)
        if classes > 1 and float(torch.cat(self.spread).max()) < 1e-5 * size:
            return Problem(
                ERROR, "teacher's logits are all equal, it tells nothing; expected a trained one; load its weights"
            )
        count = sum(len(x) for x in self.said)
        if count > 1 and float((self.high - self.low).max()) < 1e-5 * size:
            return Problem(
                ERROR,
                "teacher answers the same whatever the input, it is dead; expected a trained one; load its weights",
            )
        return None


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
    said: Tensor, labels: Tensor, classes: int, names: Sequence[str], claim: float | None, task: Task
) -> Iterator[Problem]:
    if claim is not None and not 0 <= claim <= 1:
        yield Problem(ERROR, f"teacher_accuracy={claim}, expected a share in [0, 1]; divide percent by 100")
        claim = None
    count = len(labels)
    if count < MIN_SAMPLES:
        return
    what = "tokens" if task.per_token else "samples" if task.answer_dims == 2 else "pixels"
    accuracy = float((said == labels).float().mean())
    counts = labels.bincount(minlength=classes)
    common = float(counts.max()) / count
    even = 1 / classes
    if "dkd" in task.taught_by and (swapped := _swapped(said, labels, classes, names)):
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
