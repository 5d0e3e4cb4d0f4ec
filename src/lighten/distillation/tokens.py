"""NextTokens: labels of causal language models, which predict the token that follows."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lighten.distillation.teacher import ask
from lighten.errors import UserError
from lighten.tasks.losses import IGNORED
from lighten.utils.inputs import Call, map_tensors
from lighten.utils.preserve import preserved

MIN_LABELS = 8
"""Labels from which on a copy is no accident: masking leaves a tenth of the chosen tokens as they are, 0.1^8 = 1e-8."""
_NOISE = 1e-6
"""Of the outputs, what rounding may change."""


class NextTokens:
    """Gives causal language models the labels that they learn from.

    Libraries give such a model its own input ids as labels, which position t - 1 predicts and not t: labels that
    repeat the inputs are moved by one, as ``transformers`` does in its models. Labels that were moved already, and
    those of masked tokens, stay. Looks at the first batches that have labels, then remembers.
    """

    def __init__(self) -> None:
        self._causal: bool | None = None
        self._shifts: bool | None = None
        self._labelled = self._tokens = 0

    def labels(self, student: nn.Module, call: Call, labels: Tensor, teachers: Sequence[nn.Module]) -> Tensor:
        """Return the labels (batch, length) of what each position is to predict.

        Raises:
            UserError: if the labels repeat the inputs and the student sees them, or one of student and teacher sees the
                tokens that follow and the other does not.
        """
        moved = self._look(student, call, labels, teachers) if self._shifts is None else self._shifts
        return shifted(labels) if moved else labels

    def _look(self, student: nn.Module, call: Call, labels: Tensor, teachers: Sequence[nn.Module]) -> bool:
        ids = ids_of(call, labels)
        if ids is None or ids.shape[1] < 2:
            return False
        if self._causal is None:
            self._causal = is_causal(student, call, ids)
            for teacher in teachers:
                _check_alike(student, teacher, self._causal, is_causal(teacher, call, ids))
        there = labels != IGNORED
        if bool((labels != ids)[there].any()):
            self._shifts = False
            return False
        self._labelled += int(there.sum())
        self._tokens += there.numel()
        if self._labelled >= MIN_LABELS:
            if not self._causal and self._labelled > self._tokens / 2:
                raise UserError(
                    f"all {self._labelled} labels looked at repeat the input ids, and {type(student).__name__} sees "
                    "these: it would learn to copy; mask inputs and label those, or take a causal language model"
                )
            self._shifts = self._causal
        return self._causal


def shifted(labels: Tensor) -> Tensor:
    """Return the label that follows each position; the last has none.

    Example:
        >>> shifted(torch.tensor([[5, 6, 7]]))
        tensor([[   6,    7, -100]])
    """
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], 1)


def ids_of(call: Call, labels: Tensor) -> Tensor | None:
    """Return the token ids (batch, length) of a call; ``None`` where there are none of the labels' shape."""
    args, kwargs = call
    first = kwargs.get("input_ids", args[0] if args else None)
    tokens = isinstance(first, Tensor) and not first.is_floating_point() and first.shape == labels.shape
    return first if tokens else None


@torch.no_grad()
def is_causal(model: nn.Module, call: Call, ids: Tensor) -> bool:
    """Return whether the outputs of the first half of a text do not depend on its second half.

    Runs the model twice on the first sample, in eval mode, and leaves it as it was.

    Args:
        model: gives logits (batch, length, tokens).
        call: its arguments; nothing counts as padding.
        ids: of ``call``, (batch, length).
    """
    half = ids.shape[1] // 2
    device = next((p.device for p in model.parameters()), ids.device)

    def logits(text: Tensor) -> Tensor:
        args, kwargs = map_tensors(lambda t: t[:1] if t.ndim and len(t) == len(ids) else t, call)
        if args:
            args = (text, *args[1:])
        else:
            kwargs = {**kwargs, "input_ids": text}
        if "attention_mask" in kwargs:
            kwargs["attention_mask"] = torch.ones_like(kwargs["attention_mask"])
        return ask(model, map_tensors(lambda t: t.to(device), (args, kwargs)))

    with preserved(model), torch.autocast(device.type, enabled=False):
        model.eval()
        text = ids[:1]
        before = logits(text)
        other = torch.cat([text[:, :half], (text[:, half:] + 1) % before.shape[-1]], 1)
        after = logits(other)
    change = (before - after)[:, :half].abs().amax()
    return bool(change <= _NOISE * before[:, :half].abs().amax())


def _check_alike(student: nn.Module, teacher: nn.Module, ours: bool, theirs: bool) -> None:
    if ours != theirs:
        causal, other = (student, teacher) if ours else (teacher, student)
        raise UserError(
            f"{type(other).__name__} sees the tokens that follow and {type(causal).__name__} does not, so that their "
            "answers at a position mean different tokens; take two causal language models, or two masked ones"
        )
