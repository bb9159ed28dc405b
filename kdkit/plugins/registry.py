"""Shelves: names to things, and the plugin that each thing came from."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kdkit.errors import PluginError, RecipeError, did_you_mean

REGISTRIES = ("losses", "taps", "schedules", "ramps", "models", "datasets", "metrics")


@dataclass(frozen=True, slots=True)
class Entry:
    """A thing on a shelf: what makes it, and the plugin that put it there."""

    make: Callable[..., Any]
    plugin: str


class Registry(Mapping[str, Callable[..., Any]]):
    """Things of one kind by name, such as the losses. A wrong name is answered with the nearest right one."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def register(self, name: str, make: Callable[..., Any], *, plugin: str) -> None:
        """Put a thing on the shelf. Raises PluginError for a name that is taken or a thing that makes nothing."""
        if not isinstance(name, str) or not name:
            raise PluginError(f"plugin {plugin!r} registers one of the {self.kind} under {name!r}; expected a name")
        if not callable(make):
            raise PluginError(
                f"plugin {plugin!r} registers {name!r} among the {self.kind} with a {type(make).__name__}; "
                "expected something to call"
            )
        taken = self._entries.get(name)
        if taken is not None and taken.make is not make:
            raise PluginError(
                f"plugin {plugin!r} registers {name!r} among the {self.kind}, but plugin {taken.plugin!r} already has; "
                "choose another name"
            )
        self._entries.setdefault(name, Entry(make, plugin))

    def plugin(self, name: str) -> str:
        """Return which plugin put this thing here."""
        return self._entries[name].plugin

    def __getitem__(self, name: str) -> Callable[..., Any]:
        if name not in self._entries:
            raise RecipeError(f"{name!r} is not among the {self.kind}; {did_you_mean(str(name), self._entries)}")
        return self._entries[name].make

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)
