"""Foresight: what a setting would come to, from the look at the network and the trials before."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lighten.search.choose import MOST, Setting, Tried
from lighten.search.needs import Needs
from lighten.search.predict import DropModel, LatencyModel

PER_NAT = 0.05
"""Share of quality that goes with a nat of damage in one group alone: less than its own, as groups are not alone."""
STEPS = 95
"""Strengths among which the least is found that meets a target."""


class Foresight:
    """Predicts drop and figures of settings.

    Args:
        look: content of ``look.json``.
        original: the float original's figures.
        at_once: figures of what was quantized after training, where there is one.
        tried: fine-tunes before, from whose measurements predictions are corrected.
        drops: their measured drops, by trial.
    """

    def __init__(
        self, look: Mapping[str, Any], original: Mapping[str, float], at_once: Mapping[str, float] | None,
        tried: Sequence[Tried] = (), drops: Mapping[int, float] | None = None,
    ) -> None:  # fmt: skip
        self._rows: dict[str, list[Mapping[str, Any]]] = {}
        for row in look["foreseen"]:
            self._rows.setdefault(row["target"], []).append(row)
        self._original, self._at_once = original, at_once
        groups = [
            {"name": g["name"], "curve": [(share, PER_NAT * damage) for share, damage in g["curve"]]}
            for g in look["groups"]
        ]
        self._drop = DropModel(groups, shares=self._shares)
        self._latency = LatencyModel(look["latency"])
        if at_once is not None:
            self._latency.observe(Setting(quantize="static"), at_once["latency_ms"])
        for one in tried:
            if one.figures:
                self._drop.observe(one.setting, (drops or {}).get(one.number, one.drop))
                self._latency.observe(one.setting, one.figures["latency_ms"])

    def drop(self, setting: Setting) -> float:
        """Return the drop that is foreseen."""
        return self._drop.predict(setting)

    def figures(self, setting: Setting) -> dict[str, float]:
        """Return the figures that are foreseen, as far as they are."""
        original, small = self._original, self._at_once or self._original
        found = {name: original[name] * self._left(setting, name) for name in ("macs", "parameters")}
        found["bytes"] = small["bytes"] * self._left(setting, "parameters")
        latency = self._latency.predict(setting)
        return found if latency is None else {**found, "latency_ms": latency}

    def predicted(self, setting: Setting) -> dict[str, float | None]:
        """Return what a trial's row says of it."""
        drop, latency = self.drop(setting), self._latency.predict(setting)
        return {"drop": float(f"{drop:.4g}"), "latency_ms": None if latency is None else float(f"{latency:.4g}")}

    def strongest(self, base: Setting, max_drop: float) -> float:
        """Return the largest amount whose foreseen drop is allowed."""
        return self._drop.strongest(base, max_drop)

    def weakest(self, base: Setting, needs: Needs) -> float:
        """Return the least amount that meets the targets of size and speed, as far as that is foreseen."""
        for amount in np.linspace(0.0, MOST, STEPS):
            figures = self.figures(replace(base, amount=float(amount)))
            if not any(figures.get(name, math.inf) > limit for name, limit in needs.limits.items()):
                return float(amount)
        return MOST

    def _at(self, setting: Setting) -> tuple[list[float], list[Mapping[str, Any]]]:
        rows = self._rows.get(setting.target, [])
        return [0.0, *(row["amount"] for row in rows)], rows

    def _left(self, setting: Setting, what: str) -> float:
        """Return the share of MACs or parameters that a setting leaves."""
        if setting.target == what:
            return 1.0 - setting.amount
        amounts, rows = self._at(setting)
        return float(np.interp(setting.amount, amounts, [1.0, *(row[what] for row in rows)]))

    def _shares(self, setting: Any) -> dict[str, float]:
        """Return the share of each group that a setting prunes."""
        amounts, rows = self._at(setting)
        if not rows:
            return {}
        return {
            name: float(np.interp(setting.amount, amounts, [0.0, *(row["shares"][name] for row in rows)]))
            for name in rows[0]["shares"]
        }
