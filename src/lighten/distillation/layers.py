"""MatchedLayers: records the features of student and teacher that losses compare."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lighten.distillation.match import (
    FeatureRecorder,
    Match,
    Projection,
    attention_layers,
    channels,
    check_shapes,
    match_layers,
)
from lighten.distillation.settings import UNIFORM
from lighten.distillation.teacher import Teacher, filter_kwargs
from lighten.errors import UserError
from lighten.utils.compression import RECORD, record_of
from lighten.utils.inputs import Call
from lighten.utils.modules import modes_kept

PROJECTED = ("hint", "hidden_cosine")
"""Losses that compare features value by value, so that widths must be equal."""


def matches_of(
    losses: Sequence[str], layers: str | Mapping[str, str], student: nn.Module, teacher: nn.Module
) -> dict[str, list[Match]]:
    """Return the matched layers of each loss that compares some.

    ``hidden_cosine`` takes the last pair of ``"uniform"``, as DistilBERT does, and ``relations`` the queries, keys and
    values of the last pair, as MiniLMv2 does.

    Raises:
        UserError: as :func:`match_layers`, or if a layer has no queries, keys and values.
    """
    if not losses:
        return {}
    pairs = match_layers(student, teacher, layers)
    matches = dict.fromkeys(losses, pairs)
    if "hidden_cosine" in matches and layers == UNIFORM:
        matches["hidden_cosine"] = pairs[-1:]
    if "relations" in matches:
        last = pairs[-1]
        ours, theirs = student.get_submodule(last.student), teacher.get_submodule(last.teacher)
        matches["relations"] = [
            Match(f"{last.student}.{attention_layers(ours, kind)}", f"{last.teacher}.{attention_layers(theirs, kind)}")
            for kind in ("query", "key", "value")
        ]
    return matches


class MatchedLayers:
    """Records the outputs of matched layers of two models and returns them in pairs.

    A plain object: the module that keeps it does not register the models.

    Args:
        matches: by loss, see :func:`matches_of`.
        student: the model that learns.
        teacher: the one that knows.
        projections: where what maps the student's width to the teacher's is kept, so that it learns.
    """

    def __init__(
        self, matches: Mapping[str, list[Match]], student: nn.Module, teacher: Teacher, projections: nn.ModuleDict
    ) -> None:
        self.matches = dict(matches)
        self.student, self.teacher, self.projections = student, teacher, projections
        self._recorders: tuple[FeatureRecorder, FeatureRecorder] | None = None
        self._cuts: list[Any] = []
        self._layouts: dict[str, Callable[[Tensor], Tensor]] = {}

    def open(self, call: Call) -> None:
        """Begin to record; run both once on ``call`` and make the projections that are missing.

        Modes and buffers are left as found; random numbers are drawn for new projections alone. A projection that is
        there already is kept.

        Raises:
            UserError: if features differ in more than their width, or the student has no weights yet.
        """
        if self._recorders is not None:
            return
        device = next((p.device for p in self.student.parameters()), torch.device("cpu"))
        if device.type == "meta":
            names = ", ".join(self.matches)
            raise UserError(f"{names} compare layers, and the student has no weights yet; build it with them, off meta")
        recorders = self.record()
        try:
            with modes_kept(self.student), torch.no_grad(), torch.random.fork_rng():
                args, kwargs = filter_kwargs(self.student.eval(), call)
                self.student(*args, **kwargs)
                self.teacher.logits(call, device)
            self._project(self.take(), recorders[1].take())
        except BaseException:
            self.close()
            raise

    def record(self) -> tuple[FeatureRecorder, FeatureRecorder]:
        """Begin to record, unless that has begun; projections stay as they are. Return what records."""
        if self._recorders is None:
            pairs = [match for matches in self.matches.values() for match in matches]
            self._recorders = (
                FeatureRecorder(self.student, [match.student for match in pairs]),
                FeatureRecorder(self.teacher.module, [match.teacher for match in pairs]),
            )
        return self._recorders

    @property
    def opened(self) -> bool:
        """Whether outputs are recorded."""
        return self._recorders is not None

    def take(self) -> dict[str, Tensor]:
        """Return the features of the student's last pass by name, and forget them.

        Where pruning cuts the student while it trains, they have the width of before, with zeros for what is gone.
        """
        if self._recorders is None:
            return {}
        found = self._recorders[0].take()
        self._follow_cuts()
        return {name: self._layouts[name](x) if name in self._layouts else x for name, x in found.items()}

    def pairs(self, ours: Mapping[str, Tensor] | None = None) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """Return the features of both, by loss, the student's projected where it has to be.

        Args:
            ours: what ``take`` returned; by default of the student's last pass.
        """
        if self._recorders is None:
            return {}
        ours, theirs = self.take() if ours is None else ours, self._recorders[1].take()
        return {loss: self._paired(loss, matches, ours, theirs) for loss, matches in self.matches.items()}

    def forget(self) -> None:
        """Drop what was recorded."""
        for recorder in self._recorders or ():
            recorder.take()

    def close(self) -> None:
        """Stop recording."""
        for recorder in self._recorders or ():
            recorder.close()
        self._recorders = None

    def _follow_cuts(self) -> None:
        """Learn anew where channels were, once the student has been cut."""
        parts = [(name, part) for name, part in self.student.named_modules() if RECORD in vars(part)]
        cut = [(name, part, live) for name, part in parts if (live := record_of(part, own=True).live) is not None]
        if len(cut) == len(self._cuts) and all(a[2] is b for a, b in zip(cut, self._cuts, strict=True)):
            return
        self._cuts, self._layouts = [live for _, _, live in cut], {}
        names = [match.student for matches in self.matches.values() for match in matches]
        for part, module, live in cut:
            prefix = f"{part}." if part else ""
            inside = [name.removeprefix(prefix) for name in names if f"{name}.".startswith(prefix) and name != part]
            found = live.layouts(module, list(dict.fromkeys(inside)))
            self._layouts |= {f"{prefix}{name}": layout for name, layout in found.items()}

    def _paired(
        self, loss: str, matches: list[Match], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        found = []
        for match in matches:
            a, b, name = ours[match.student], theirs[match.teacher], projection_name(match)
            check_shapes(loss, match, a, b)
            found.append((self.projections[name](a) if loss in PROJECTED and name in self.projections else a, b))
        return found

    def _project(self, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
        for loss, matches in self.matches.items():
            for match in matches:
                a, b, name = ours[match.student], theirs[match.teacher], projection_name(match)
                check_shapes(loss, match, a, b)
                ours_wide, theirs_wide = channels(a), channels(b)
                if loss not in PROJECTED or ours_wide == theirs_wide:
                    continue
                known = self.projections[name] if name in self.projections else None  # noqa: SIM401 (no get)
                if not isinstance(known, Projection) or known.weight.shape != (theirs_wide, ours_wide):
                    self.projections[name] = Projection(ours_wide, theirs_wide, bias=False).to(a)


def projection_name(match: Match) -> str:
    """Return a name for the projection of a pair of layers that a module may have."""
    return f"{match.student}->{match.teacher}".replace(".", "_")


def restore_projections_(projections: nn.ModuleDict, state: Mapping[str, Tensor], prefix: str = "projections.") -> None:
    """Make the projections that a checkpoint holds, so that its weights can be loaded before any fit."""
    for key, weight in state.items():
        name = key.removeprefix(prefix).removesuffix(".weight")
        if key.startswith(prefix) and name not in projections:
            projections[name] = Projection(weight.shape[1], weight.shape[0], bias=False).to(weight.dtype)
