"""Find plugins, reject those that do not fit the hooks, and build the registries from the rest."""

import inspect
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import pluggy

from kdkit.errors import KdkitError, PluginError, describe, did_you_mean, first_line
from kdkit.plugins import builtin, hooks
from kdkit.plugins.registry import REGISTRIES, Registry

GROUP = "kdkit"  # the entry-point group, and pluggy's project name


class PluginWarning(RuntimeWarning):
    """An installed plugin, or a hook of it, is skipped. The command line prints it in one line."""


@cache
def installed() -> "Plugins":
    """Return the built-in plugin and all installed ones, which are found by their entry points once per process."""
    plugins = Plugins()
    plugins.add(builtin, "kdkit")
    # Sorted, because the order of entry points depends on the file system.
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            plugins.add(point.load(), point.name, installed=True)
        except Exception as error:  # the import of a broken package must not break every command
            package = point.dist.name if point.dist is not None else point.value
            warnings.warn(
                f"plugin {point.name!r} of {package} is skipped, because it could not be loaded: {first_line(error)}",
                PluginWarning,
                stacklevel=2,
            )
    return plugins


def registry(kind: str) -> Registry:
    """Return a registry of the installed plugins: `kdkit.registry("losses")["soft_targets"](temperature=4)`.

    Raises PluginError if there is no registry of this kind.
    """
    return installed().registry(kind)


class Plugins:
    """The plugins of one run: kdkit's own, the installed ones, and those of a recipe file and of callbacks."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(GROUP)
        self.manager.add_hookspecs(hooks)
        self._installed: set[str] = set()
        self._registries: dict[str, Registry] | None = None  # built when first used, and after each change

    def add(self, plugin: object, name: str, *, installed: bool = False) -> None:
        """Add a plugin: a module or an object with hooks.

        installed: whether it is there in every run, so that a hook of it that fails costs a warning only.
        Raises PluginError if one of its hooks does not exist or has other arguments.
        """
        if self.manager.is_registered(plugin):
            return
        if self.manager.has_plugin(name):
            raise PluginError(f"a plugin named {name!r} is already loaded; rename the second one")
        try:
            self.manager.register(plugin, name=name)
            self.manager.check_pending()  # rejects hooks that no specification has
        except pluggy.PluginValidationError as error:
            self.remove(plugin)
            raise PluginError(self._explain(error, plugin, name)) from error
        if installed:
            self._installed.add(name)
        self._registries = None

    def extended(self, plugins: Sequence[object]) -> "Plugins":
        """Return a new collection of these plugins and the given ones."""
        extended = Plugins()
        for name, plugin in self.manager.list_name_plugin():
            extended.add(plugin, name, installed=name in self._installed)
        for plugin in plugins:
            if isinstance(plugin, type):
                raise PluginError(f"a callback is an object with hooks; got {describe(plugin)}")
            # With the id, so that two callbacks of one class have different names.
            extended.add(plugin, f"{type(plugin).__name__}-{id(plugin)}")
            extended._require_hooks(plugin)
        return extended

    def _require_hooks(self, callback: object) -> None:
        """Raise PluginError if a callback has no hook, which is likely to be one without its decorator."""
        if self.manager.get_hookcallers(callback):
            return
        undecorated = [
            name for name, value in vars(hooks).items() if hasattr(value, "kdkit_spec") and hasattr(callback, name)
        ]
        example = f"its {', '.join(undecorated)}" if undecorated else "a method, such as epoch_ended(self, event),"
        raise PluginError(
            f"the callback {type(callback).__name__} has no hooks, so it would never be called; decorate {example} "
            "with @kdkit.hookimpl"
        )

    def remove(self, plugin: object) -> None:
        """Remove a plugin, if it is there."""
        if self.manager.is_registered(plugin):
            self.manager.unregister(plugin)
            self._registries = None

    def registry(self, kind: str) -> Registry:
        """Return a registry by kind, one of REGISTRIES.

        Raises PluginError if there is no such kind, or if a plugin fails to register.
        """
        if kind not in REGISTRIES:
            raise PluginError(f"{kind!r} is not a registry; {did_you_mean(kind, REGISTRIES)}")
        if self._registries is None:
            self._registries = {kind: self._build_registry(kind) for kind in REGISTRIES}
        return self._registries[kind]

    @property
    def hook(self) -> Any:
        """All hooks, to be called by name with keyword arguments."""
        return self.manager.hook

    def _build_registry(self, kind: str) -> Registry:
        registry = Registry(kind)
        hook = getattr(self.manager.hook, f"register_{kind}")
        # Called one by one instead of through pluggy, so that each entry and each error is attributed to its plugin.
        for implementation in hook.get_hookimpls():  # in the order of registration, kdkit's own first

            def register(name: str, factory: Any, plugin: str = implementation.plugin_name) -> None:
                registry.register(name, factory, plugin=plugin)

            try:
                implementation.function(*([register] if implementation.argnames else []))
            except KdkitError:
                raise
            except Exception as error:  # a hook may raise anything, such as an ImportError
                name = implementation.plugin_name
                message = f"plugin {name!r} cannot register its {kind}: {type(error).__name__}: {first_line(error)}"
                if name not in self._installed:
                    raise PluginError(message) from error
                # A run that does not use this plugin must not end because of it.
                warnings.warn(message, PluginWarning, stacklevel=2)
        return registry

    def _explain(self, error: pluggy.PluginValidationError, plugin: object, name: str) -> str:
        """Return why a plugin was rejected: an unknown hook with the nearest known one, or pluggy's own reason."""
        specifications = {name: value for name, value in vars(hooks).items() if hasattr(value, "kdkit_spec")}
        for attribute in dir(plugin):
            if self.manager.parse_hookimpl_opts(plugin, attribute) is None:
                continue
            if attribute not in specifications:
                hint = did_you_mean(attribute, specifications)
                return f"plugin {name!r} implements {attribute!r}, which is not a hook of kdkit; {hint}"
            accepted = [*inspect.signature(specifications[attribute]).parameters]
            for argument in inspect.signature(getattr(plugin, attribute)).parameters:
                if argument not in accepted:
                    return (
                        f"plugin {name!r} implements {attribute!r} with an argument {argument!r}, which kdkit does not "
                        f"pass; {did_you_mean(argument, accepted)}"
                    )
        return f"plugin {name!r} does not fit: {str(error).strip()}"
