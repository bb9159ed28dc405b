"""Registries: named objects of one kind, such as the losses, and the plugin that registered each."""

import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kdkit.errors import PluginError, RecipeError, did_you_mean

# Each kind has a hook `register_<kind>` in hooks.py.
REGISTRIES = ("losses", "taps", "schedules", "ramps", "models", "datasets", "metrics", "loggers", "exporters")


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered factory, and the plugin that registered it."""

    factory: Callable[..., Any]
    plugin: str


class Registry(Mapping[str, Callable[..., Any]]):
    """Factories of one kind by name, in alphabetical order.

    An unknown name raises RecipeError, which suggests the nearest known name.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def register(self, name: str, factory: Callable[..., Any], *, plugin: str) -> None:
        """Register a factory under a name. Raises PluginError if the name is taken or the factory is not callable."""
        if not isinstance(name, str) or not name:
            raise PluginError(f"plugin {plugin!r} registers one of the {self.kind} under {name!r}; expected a name")
        if not callable(factory):
            raise PluginError(
                f"plugin {plugin!r} registers {name!r} among the {self.kind} with a {type(factory).__name__}; "
                "expected a callable"
            )
        taken = self._entries.get(name)
        # A module that two plugins load registers the same object twice, which is not a conflict.
        if taken is not None and taken.factory is not factory:
            raise PluginError(
                f"plugin {plugin!r} registers {name!r} among the {self.kind}, but plugin {taken.plugin!r} already has; "
                "choose another name"
            )
        self._entries.setdefault(name, Entry(factory, plugin))

    def __repr__(self) -> str:
        names = textwrap.fill(", ".join(self), width=100, initial_indent="  ", subsequent_indent="  ")
        return f"Registry of {len(self)} {self.kind}:\n{names}"

    def plugin(self, name: str) -> str:
        """Return the name of the plugin that registered this entry."""
        return self._entries[name].plugin

    def __getitem__(self, name: str) -> Callable[..., Any]:
        if name not in self._entries:
            # Not a KeyError, because the user must correct a name in a recipe.
            raise RecipeError(f"{name!r} is not among the {self.kind}; {did_you_mean(str(name), self._entries)}")
        return self._entries[name].factory

    def __contains__(self, name: object) -> bool:
        # Mapping's own version expects a KeyError from __getitem__.
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)
