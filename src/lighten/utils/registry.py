"""Registries of names that recipes may use."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from lighten.errors import UserError, did_you_mean
from lighten.utils.typecheck import as_text, value_error

Builder = Callable[..., Any]


class Registry:
    """Names and their builders: built in, registered by decorator, or announced by an installed package.

    Listing names imports none of them; a builder is imported when it is first asked for.

    Args:
        kind: what the names stand for, as error messages call it.
        group: entry point group of installed packages.
        builtin: name -> module that registers it when imported.
        given: arguments that the caller provides, so that they are no options of a recipe.
    """

    def __init__(self, kind: str, *, group: str, builtin: Mapping[str, str], given: tuple[str, ...]) -> None:
        self.kind = kind
        self.group = group
        self.given = given
        self._builtin = dict(builtin)
        self._builders: dict[str, Builder] = {}

    def register(self, name: str) -> Callable[[Builder], Builder]:
        """Return a decorator that adds a builder under ``name``.

        Raises:
            UserError: if the name belongs to another builder.
        """

        def add(builder: Builder) -> Builder:
            owner = self._owner(name)
            if owner not in (None, builder.__module__):
                raise UserError(f"{self.kind} {name!r} is taken by {owner}; register another name")
            self._builders[name] = builder
            return builder

        return add

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted({*self._builtin, *self._builders, *entry_points(group=self.group).names})

    def get(self, name: str) -> Builder:
        """Return the builder of ``name``.

        Raises:
            UserError: if there is none; the nearest name is given.
        """
        if name not in self._builders and name in self._builtin:
            importlib.import_module(self._builtin[name])
        if name not in self._builders:
            for entry in entry_points(group=self.group, name=name):
                self._builders[name] = entry.load()
        if name not in self._builders:
            raise UserError(f"{self.kind} {name!r} is unknown; {did_you_mean(name, self.names())}")
        return self._builders[name]

    def bind(self, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``options`` completed with the builder's defaults.

        Raises:
            UserError: if the name or an option is unknown, a required option is missing, or one has another type than
                the builder says; numbers become text where it wants text.
        """
        parameters = inspect.signature(self.get(name)).parameters.values()
        known = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in self.given}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            for key in options:
                if key not in known:
                    hint = did_you_mean(str(key), known) if known else "it takes none"
                    raise UserError(f"{self.kind} {name}: no option {key!r}; {hint}")
        missing = [k for k, p in known.items() if p.default is p.empty and k not in options]
        if missing:
            raise UserError(f"{self.kind} {name}: option {missing[0]!r} is missing")
        kinds = {key: known[key].annotation for key in options if key in known}
        wrong = [value_error(f"{self.kind} {name}: {key}", kind, options[key]) for key, kind in kinds.items()]
        if any(wrong):
            raise UserError(next(filter(None, wrong)))
        given = {key: as_text(kinds.get(key), value) for key, value in options.items()}
        return {k: p.default for k, p in known.items()} | given

    def options(self, name: str) -> list[str]:
        """Return the names of a builder's options.

        Raises:
            UserError: if there is no such builder.
        """
        parameters = inspect.signature(self.get(name)).parameters.values()
        return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in self.given]

    def _owner(self, name: str) -> str | None:
        known = self._builders.get(name)
        return known.__module__ if known else self._builtin.get(name)
