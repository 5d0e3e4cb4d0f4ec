"""Pruning plan: what is removed, as plain data."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO
from typing import TYPE_CHECKING, Any

from lighten.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = 2
OF_MODULES = frozenset(("live", "output"))
"""Roles of slots that name a module, not a tensor."""
SAVED = {"macs": "MACs", "parameters": "parameters", "latency": "latency"}


@dataclass(frozen=True)
class Slot:
    """One dimension of one parameter or buffer.

    ``role`` is ``filter``, ``bias``, ``norm``, ``shift``, ``scale``, ``input``, ``statistic`` or ``direction``; the
    last two are cut but not zeroed. With ``live``, ``tensor`` names a module, a norm, and ``dim`` is that of what it
    takes: its forward runs on the channels that are left. With ``output`` it names one without weights, such as sines
    of positions, and ``dim`` is that of what it puts out.
    """

    tensor: str
    dim: int
    role: str


@dataclass(frozen=True)
class Cut:
    """The positions that go along dimensions of ``size``, the same ones in every slot."""

    size: int
    removed: tuple[int, ...]
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class GroupPlan:
    """What becomes of one group: channels of several layers that are kept or removed together.

    Attributes:
        name: the first layer of the group; with its positions where a layer belongs to several groups.
        layers: every layer whose filters are tied here.
        kept: indices of the channels that stay, among ``width_before``.
        scores: one for each channel; the lowest go first.
        norms: L2 norm of each channel's filters, of all layers side by side.
        score: the criterion that gave the scores.
        why: why that one, where it was chosen for the group.
        macs: share of the network's multiply-accumulates that read or write its channels.
        curve: points (share of its channels that go, damage to the outputs), where that was measured.
    """

    name: str
    layers: tuple[str, ...]
    kept: tuple[int, ...]
    scores: tuple[float, ...]
    norms: tuple[float, ...] = ()
    score: str = ""
    why: str = ""
    macs: float = 0.0
    curve: tuple[tuple[float, float], ...] = ()

    @property
    def width_before(self) -> int:
        """Channels of the group before anything is removed."""
        return len(self.scores)

    @property
    def width_after(self) -> int:
        """Channels that stay."""
        return len(self.kept)

    @property
    def removed(self) -> tuple[int, ...]:
        """Indices of the channels that go."""
        kept = set(self.kept)
        return tuple(i for i in range(self.width_before) if i not in kept)


@dataclass(frozen=True)
class Plan:
    """Which channels of which layers are removed, and why the others stay. It can be read without a model.

    Attributes:
        groups: one row for each group that can be pruned.
        cuts: what to zero, and to cut, by parameter name relative to the planned model.
        frozen: layers that are not pruned, and why.
        widths: channels of each layer before and after.
        settings: ``amount``, ``score``, ``scope``, ``target``, …
        saved: removed shares: ``channels`` (of those that can be), ``macs``, ``parameters``, and ``latency`` if it
            was measured.
        example: shapes and types of the model's input, for the check after cutting.
        attributes: integers that the forward reads from modules, such as numbers of heads, before and after the cut,
            by the names of module and attribute.
        part: name of the planned model within a larger module, if a callback planned a part of one.

    Example:
        >>> from torch import nn, randn
        >>> from lighten.pruning import plan_pruning
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> plan = plan_pruning(model, randn(1, 4), amount=0.5)
        >>> [(row.name, row.width_before, row.width_after) for row in plan.groups], plan.frozen
        ([('0', 8, 4)], {'2': "is the network's output"})
    """

    groups: tuple[GroupPlan, ...]
    cuts: tuple[Cut, ...]
    frozen: Mapping[str, str]
    widths: Mapping[str, tuple[int, int]]
    settings: Mapping[str, Any]
    example: Mapping[str, Any]
    saved: Mapping[str, float] = field(default_factory=dict)
    part: str = ""
    attributes: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of_cuts(
        cls, cuts: tuple[Cut, ...], example: Mapping[str, Any], attributes: Mapping[str, tuple[int, int]] | None = None
    ) -> "Plan":
        """Return a plan that says nothing but what to cut: for trials."""
        return cls((), cuts, {}, {}, {}, example, attributes=attributes or {})

    @property
    def sparsity(self) -> float:
        """Share of the prunable channels that are removed, in [0, 1]."""
        before = sum(row.width_before for row in self.groups)
        return sum(len(row.removed) for row in self.groups) / before if before else 0.0

    @property
    def hash(self) -> str:
        """SHA-256 of what is cut; it does not depend on the scores."""
        lines = sorted(
            f"{slot.tensor} {slot.dim} {cut.size} {list(cut.removed)}" for cut in self.cuts for slot in cut.slots
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def to_json(self) -> str:
        """Return one JSON object that :meth:`from_json` reads back to an equal plan."""
        rows = vars(self) | {"groups": [vars(row) for row in self.groups]}
        rows |= {"cuts": [{**vars(cut), "slots": [vars(slot) for slot in cut.slots]} for cut in self.cuts]}
        return json.dumps({"schema": SCHEMA, "hash": self.hash, **rows})

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read a plan.

        Raises:
            UserError: if ``text`` is not a plan, has a newer schema, or does not match its hash.
        """
        try:
            data = json.loads(text)
            schema, expected = data["schema"], data["hash"]
            if schema != SCHEMA:
                raise UserError(
                    f"the plan has schema {schema}, expected {SCHEMA}; read it with the version that wrote it"
                )
            plan = cls(
                groups=tuple(_group(row) for row in data["groups"]),
                cuts=tuple(
                    Cut(c["size"], tuple(c["removed"]), tuple(Slot(**slot) for slot in c["slots"]))
                    for c in data["cuts"]
                ),
                frozen=data["frozen"],
                widths={layer: (before, after) for layer, (before, after) in data["widths"].items()},
                settings=data["settings"],
                example=data["example"],
                saved=data["saved"],
                part=data.get("part", ""),
                attributes={name: (before, after) for name, (before, after) in data.get("attributes", {}).items()},
            )
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"this is no pruning plan ({type(error).__name__}: {error}); give what Plan.to_json wrote"
            ) from error
        if plan.hash != expected:
            raise UserError(
                f"the plan's cuts do not match its hash {expected[:12]}; it was damaged or edited, plan again"
            )
        return plan

    def rich(self, times: Mapping[str, tuple[float, float]] | None = None) -> "Table":
        """Return the table that ``print(plan)`` shows.

        Args:
            times: milliseconds of layers before and after, for a column of those of each group's layers.
        """
        from rich.table import Table

        settings = self.settings
        table = Table(
            title=f"Pruning plan: {self._says()}, {settings['score']}, {settings['scope']}; asked for: "
            f"{settings['amount']:.1%} of {settings['target']}",
            title_justify="left",
            min_width=64,
            caption=self._not_pruned() + self._follows() + _total(times),
            caption_justify="left",
        )
        for name, justify in (
            ("group", "left"), ("layers tied", "left"), ("width", "right"), ("scores", "right"), ("MACs", "right"),
            *([("ms", "right")] if times else []),
            *([("score", "left")] if any(row.why for row in self.groups) else []),
        ):  # fmt: skip
            table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
        for row in self.groups:
            cells = [
                row.name, _few(row.layers[1:], most=3), f"{row.width_before} -> {row.width_after}",
                f"{min(row.scores):.3g} to {max(row.scores):.3g}", f"{row.macs:.1%}",
            ]  # fmt: skip
            if times:
                known = [times[layer] for layer in row.layers if layer in times]
                cells.append(" -> ".join(f"{sum(t[i] for t in known):.3g}" for i in (0, 1)))
            table.add_row(*cells, *([f"{row.score}: {row.why}"] if row.why else []))
        return table

    def __str__(self) -> str:
        from rich.console import Console

        out = StringIO()
        Console(file=out, width=110, color_system=None).print(self.rich())
        return out.getvalue().rstrip()

    def _says(self) -> str:
        channels = f"{self.sparsity:.1%} of {sum(g.width_before for g in self.groups)} channels"
        others = [f"{self.saved[key]:.1%} of {name}" for key, name in SAVED.items() if key in self.saved]
        return ", ".join([channels, *others])

    def _follows(self) -> str:
        """Return the attributes that change, equal ones of repeated blocks in one line."""
        alike: dict[tuple[str, int, int], list[str]] = {}
        for name, (before, after) in self.attributes.items():
            alike.setdefault((re.sub(r"\d+", "#", name), before, after), []).append(name)
        rows = [
            f"  {names[0]} {before} -> {after}" + f" and {len(names) - 1} more" * (len(names) > 1)
            for (_, before, after), names in alike.items()
        ]
        return "\n".join(["", "Attributes that follow:", *rows]) if rows else ""

    def _not_pruned(self) -> str:
        whys: dict[str, list[str]] = {}
        for layer, why in self.frozen.items():
            whys.setdefault(why, []).append(layer)
        return "\n".join(["Not pruned:", *(f"  {_few(layers)}: {why}" for why, layers in whys.items())])


def _total(times: Mapping[str, tuple[float, float]] | None) -> str:
    if not times:
        return ""
    before, after = (sum(t[i] for t in times.values()) for i in (0, 1))
    return (
        f"\nPredicted: {before:.3g} -> {after:.3g} ms a sample in all convolutions and linear layers, each timed alone "
        "in ONNX Runtime, float32, 1 thread"
    )


def _group(row: Mapping[str, Any]) -> GroupPlan:
    lists = {key: tuple(row[key]) for key in ("layers", "kept", "scores", "norms")}
    curve = tuple((share, damage) for share, damage in row["curve"])
    return GroupPlan(name=row["name"], score=row["score"], why=row["why"], macs=row["macs"], curve=curve, **lists)


def _few(names: list[str] | tuple[str, ...], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
