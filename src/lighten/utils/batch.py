"""Parts of a batch: inputs, labels, keys, weights."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from lighten.errors import UserError, did_you_mean
from lighten.utils.inputs import Call, as_call

INPUT, LABEL, KEY, WEIGHT, IGNORE = ROLES = ("input", "label", "key", "weight", "ignore")
"""What ``batch=`` may call a part."""

Roles = Sequence[str] | Mapping[str, str]
"""What the public functions accept as ``batch``: a role for each part, or names of entries to roles."""

_NAMED = {"labels": LABEL, "keys": KEY}
_LABELS = ("label", "target", "targets", "y", "class", "classes")
_MANY = 4
"""Parts of a batch from which on a message counts them."""


class KeyedBatch(NamedTuple):
    """A batch that says itself what its third part is: one number for each view of each sample."""

    inputs: Tensor
    labels: Tensor
    keys: Tensor


COMMON = "let the data set or its collate_fn give (inputs, labels), or a mapping with 'labels'"
"""What to do where no roles can be named."""


@dataclass(frozen=True)
class Parts:
    """A batch taken apart.

    Attributes:
        call: positional and keyword arguments of the model.
        labels: ``None`` where there are none.
        keys: int64 (batch,), one number for each view of each sample, or ``None``.
        weights: (batch,), of the samples, or ``None``.
    """

    call: Call
    labels: Any = None
    keys: Tensor | None = None
    weights: Tensor | None = None


@dataclass(frozen=True)
class BatchFormat:
    """How batches are taken apart.

    Without ``roles`` only what is certain is taken: a lone tensor and ``[inputs]`` are inputs, ``(inputs, labels)`` is
    what it says, a mapping has ``labels`` (and ``keys``) by name and its other entries are keywords of the model.
    Inputs may themselves be a tuple or list of positional arguments, or a mapping of keywords.

    Args:
        roles: one of ``ROLES`` for each part; or names of a mapping (or named tuple, or dataclass) to roles: inputs
            named there are positional, in that order, and all that there are; without, what is not named is a keyword.
        keyed: without ``roles``, the third of three parts are keys.
        nameable: whether who reads a message can name the roles.

    Raises:
        UserError: for a role that does not exist, a label, key or weight that is named twice, or roles without input.

    Example:
        >>> import torch
        >>> x, y = torch.ones(2, 3), torch.zeros(2)
        >>> parts = BatchFormat(("input", "input", "label")).split((x, x, y))
        >>> len(parts.call[0]), parts.labels is y
        (2, True)
    """

    roles: Roles | None = None
    keyed: bool = False
    nameable: bool = True

    def __post_init__(self) -> None:
        if self.roles is None:
            return
        named = isinstance(self.roles, Mapping)
        if not named and (isinstance(self.roles, str) or not isinstance(self.roles, Sequence)):
            raise UserError(f'batch={self.roles!r}, expected a role for each part, as in batch=("input", "label")')
        roles = list(self.roles.values() if isinstance(self.roles, Mapping) else self.roles)
        for role in roles:
            if role not in ROLES:
                example = 'batch={"target": "label"}' if named else 'batch=("input", "input", "label")'
                raise UserError(
                    f"batch has the role {role!r}, expected one as in {example}; {did_you_mean(str(role), ROLES)}"
                )
        twice = [role for role in (LABEL, KEY, WEIGHT) if roles.count(role) > 1]
        if twice:
            raise UserError(
                f"batch={self.roles!r} has {twice[0]!r} twice, expected it once; 'ignore' leaves a part out"
            )
        if not named and INPUT not in roles:
            raise UserError(f"batch={self.roles!r} has no 'input', expected at least one")

    @property
    def weighted(self) -> bool:
        """Whether a part is the samples' weights."""
        roles = self.roles.values() if isinstance(self.roles, Mapping) else self.roles or ()
        return WEIGHT in roles

    def split(self, batch: Any) -> Parts:
        """Return the parts of a batch.

        Raises:
            UserError: if it is not certain what they are, or the batch does not fit the roles.
        """
        if isinstance(self.roles, Mapping):
            return _by_name(_entries(batch), self.roles)
        if self.roles is not None:
            return _by_position(batch, _fitting(self.roles, batch))
        if isinstance(batch, Mapping):
            return _by_name(batch, {name: role for name, role in _NAMED.items() if name in batch})
        if isinstance(batch, Tensor):
            return Parts(as_call(batch))
        if not isinstance(batch, list | tuple):
            raise UserError(
                f"a batch is of type {type(batch).__name__}, expected a tensor, (inputs, labels) or a mapping with "
                "'labels'; return one of these from the data set or its collate_fn"
            )
        known: dict[int, tuple[str, ...]] = {1: (INPUT,), 2: (INPUT, LABEL)}
        if self.keyed or isinstance(batch, KeyedBatch):
            known[3] = (INPUT, LABEL, KEY)
        if len(batch) not in known:
            advice = COMMON
            if self.nameable:
                example = 'batch=("input", "input", "label") or ("input", "label", "weight")'
                advice = f"name them, as in {example}; roles: {', '.join(ROLES)}"
            raise UserError(f"a batch has {_described(batch)}, and nothing says what they are; {advice}")
        return _by_position(batch, known[len(batch)])

    def labelled(self, batch: Any) -> Parts:
        """Return the parts of a batch that needs labels.

        Raises:
            UserError: as ``split``, or if there are none.
        """
        parts = self.split(batch)
        if parts.labels is None:
            raise UserError(
                f"a batch without labels, expected (inputs, labels) or a mapping with 'labels'"
                f"{_hint(batch, nameable=self.nameable)}"
            )
        return parts


def _fitting(roles: Sequence[str], batch: Any) -> Sequence[str]:
    """Return the roles of the parts that are there: a batch may end before keys and weights, or be all the inputs."""
    if not isinstance(batch, Tensor | list | tuple):
        raise UserError(
            f"batch={tuple(roles)} names parts by position, and a batch is of type {type(batch).__name__}; name "
            'its entries, as in batch={"target": "label"}'
        )
    size = 1 if isinstance(batch, Tensor) else len(batch)
    inputs = [role for role in roles if role == INPUT]
    if size <= len(roles) and not {INPUT, LABEL} & set(roles[size:]):
        return roles[:size]
    if size == len(inputs):
        return inputs
    found = f"is one tensor {tuple(batch.shape)}" if isinstance(batch, Tensor) else f"has {_described(batch)}"
    raise UserError(f"batch={tuple(roles)} names {len(roles)} parts, and a batch {found}; name each")


def _by_position(batch: Any, roles: Sequence[str]) -> Parts:
    parts = [batch] if isinstance(batch, Tensor) else list(batch)
    found = {role: part for part, role in zip(parts, roles, strict=True) if role not in (INPUT, IGNORE)}
    inputs = [part for part, role in zip(parts, roles, strict=True) if role == INPUT]
    if len(inputs) == 1:
        (lone,) = inputs
        call = as_call(tuple(lone) if isinstance(lone, list) else lone)
    else:
        call = tuple(inputs), {}
    return Parts(call, found.get(LABEL), found.get(KEY), found.get(WEIGHT))


def _by_name(batch: Mapping[str, Any], roles: Mapping[str, str]) -> Parts:
    missing = [name for name, role in roles.items() if role == INPUT and name not in batch]
    if missing:
        raise UserError(f"batch names the input {missing[0]!r}, and a batch has {', '.join(map(repr, batch))}")
    found = {role: batch[name] for name, role in roles.items() if role != INPUT and name in batch}
    args = tuple(batch[name] for name, role in roles.items() if role == INPUT)
    keywords = {} if args else {name: value for name, value in batch.items() if name not in roles}
    return Parts((args, keywords), found.get(LABEL), found.get(KEY), found.get(WEIGHT))


def _entries(batch: Any) -> Mapping[str, Any]:
    if isinstance(batch, Mapping):
        return batch
    if hasattr(batch, "_asdict"):
        return batch._asdict()
    if dataclasses.is_dataclass(batch):
        return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    raise UserError(
        f"batch names entries, and a batch is of type {type(batch).__name__}, which has no names; name its parts by "
        'position, as in batch=("input", "label")'
    )


def _hint(batch: Any, *, nameable: bool) -> str:
    if not isinstance(batch, Mapping):
        return ""
    if not nameable:
        return f"; it has {', '.join(map(repr, batch))}; {COMMON}"
    named = next((name for name in batch if name in _LABELS), None)
    example = f'; name them, as in batch={{"{named}": "label"}}' if named else ""
    return f"; it has {', '.join(map(repr, batch))}{example}"


def _described(parts: Sequence[Any]) -> str:
    each = [f"{tuple(part.shape)}" if isinstance(part, Tensor) else type(part).__name__ for part in parts[:_MANY]]
    more = ", …" if len(parts) > _MANY else ""
    return f"{len(parts)} parts ({', '.join(each)}{more})" if len(parts) != 1 else f"one part ({each[0]})"
