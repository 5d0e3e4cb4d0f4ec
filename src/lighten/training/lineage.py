"""Lineage of a checkpoint: recipe, teacher and data, kept in it and compared on resume."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from lighten.errors import UserError
from lighten.utils.fingerprint import fingerprint_of

ORIGIN = "lighten"
"""Where a checkpoint keeps it."""


class Lineage(Callback):
    """Writes into each checkpoint what the fit was made of, and refuses to resume from what was made of something else.

    A checkpoint's ``lighten`` entry is ``{"schema", "recipe", "settings", "changes"}`` and ``made_of``: ``recipe`` is
    the SHA-256 of ``settings``, ``changes`` what they were before which step. Masks, plans and ranges, the optimizer,
    the data's position and the step that all random numbers depend on are in other entries; a cache marks its answers
    one by one and has no position.

    Args:
        settings: all that decides what is learned, by dotted keys, as plain Python.
        made_of: name -> fingerprint, such as of ``teacher`` and ``data``; they must be equal in any case.
        accept: resume with other settings, and call this once the first step follows; the optimizer's options are then
            the new ones.

    Raises:
        UserError: in one line, with what differs.

    Example:
        >>> Origin({"optimizer.lr": 0.1}, {"teacher": "2b07208a"}).entry["settings"]
        {'optimizer.lr': 0.1}
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        made_of: Mapping[str, str | None],
        *,
        accept: Callable[[], None] | None = None,
    ) -> None:
        self.settings = dict(settings)
        self.made_of = dict(made_of)
        self.accept = accept
        self.begun = False
        self._changes: list[dict[str, Any]] = []
        self._changed = False
        self._fresh: list[list[dict[str, Any]]] = []

    @property
    def entry(self) -> dict[str, Any]:
        """What checkpoints get."""
        recipe = fingerprint_of(**self.settings)
        return {"schema": 1, "recipe": recipe, "settings": self.settings, "changes": self._changes, **self.made_of}

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write it down."""
        checkpoint[ORIGIN] = self.entry

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare, before the optimizer is restored; a checkpoint that tells nothing passes."""
        found = checkpoint.get(ORIGIN)
        if not isinstance(found, dict):
            return
        for name, here in self.made_of.items():
            if found.get(name) != here:
                raise UserError(
                    f"the checkpoint's {name} is {_short(found.get(name))}, this fit's is {_short(here)}; "
                    f"give the {name} that it began with, or begin another run"
                )
        was, now = found.get("settings", {}), self.settings
        keys = differing(now, was)
        if keys and self.accept is None:
            raise UserError(
                f"the checkpoint was made with {format_settings(keys, was)}, "
                f"this fit has {format_settings(keys, now)}; "
                "repeat its settings, begin another run, or set resume=changed"
            )
        self._changes = list(found.get("changes", []))
        if keys:
            self._changes.append({"step": checkpoint.get("global_step"), "was": {k: was.get(k) for k in keys}})
        self._changed = bool(keys)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the options of an optimizer that is still as this fit's settings made it."""
        self.begun = False
        self._fresh = [[dict(group) for group in optimizer.param_groups] for optimizer in trainer.optimizers]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the optimizer these options again, where settings have changed: the checkpoint's have replaced them."""
        self.begun = True
        if self.accept is not None:
            self.accept()
        if not self._changed:
            return
        for optimizer, groups in zip(trainer.optimizers, self._fresh, strict=True):
            for group, fresh in zip(optimizer.param_groups, groups, strict=True):
                group.update({key: value for key, value in fresh.items() if key != "params"})
        for config in trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            groups = scheduler.optimizer.param_groups
            scheduler.base_lrs = [group["initial_lr"] for group in groups]
            for group, share in zip(groups, getattr(scheduler, "lr_lambdas", []), strict=False):
                group["lr"] = group["initial_lr"] * share(scheduler.last_epoch)


def differing(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """Return the keys whose values are not equal, in order."""
    return [key for key in {**here, **there} if here.get(key) != there.get(key)]


def format_settings(keys: Iterable[str], settings: Mapping[str, Any], most: int = 3) -> str:
    """Return ``"a=1, b=2 and 4 more"``."""
    keys = list(keys)
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(f"{key}={settings.get(key)}" for key in keys[:most]) + more


def _short(fingerprint: Any) -> str:
    return "none" if fingerprint is None else str(fingerprint)[:12]
