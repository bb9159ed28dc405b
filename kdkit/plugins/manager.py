"""Find plugins, reject plugins that do not match the hooks, and build the registries from the others."""

import inspect
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cache, partial
from importlib.metadata import entry_points
from typing import Any

import pluggy

from kdkit.errors import (
    KdkitError,
    PluginError,
    PluginWarning,
    Terminated,
    describe,
    did_you_mean,
    first_line,
    shows_tracebacks,
)
from kdkit.plugins import builtin, hooks
from kdkit.plugins.registry import REGISTRIES, Registry
from kdkit.utils.signatures import parameters_by_name

GROUP = "kdkit"  # the entry-point group, and pluggy's project name


@cache
def installed() -> "Plugins":
    """Return the built-in plugin and all installed ones. Entry points are searched once per process."""
    plugins = Plugins()
    plugins.add(builtin, "kdkit")
    # Sorted, because the order of entry points depends on the file system.
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        package = point.dist.name if point.dist is not None else point.value
        began = time.perf_counter()
        # The import of a broken package must not break every command.
        with warnings_for_errors(f"plugin {point.name!r} of {package} is skipped, because it could not be loaded"):
            plugin = point.load()
            plugins.add(plugin, point.name, installed=True)
            without_decorator = undecorated_hooks(plugin)
            if without_decorator or not plugins.manager.get_hookcallers(plugin):
                names = ", ".join(without_decorator) or "functions, such as register_losses(register),"
                problem = "functions that are never called" if without_decorator else "no hooks, so it adds nothing"
                warnings.warn(
                    f"plugin {point.name!r} of {package} has {problem}; decorate its {names} with @kdkit.hookimpl",
                    PluginWarning,
                    stacklevel=2,
                )
        plugins.load_seconds[point.name] = time.perf_counter() - began
    return plugins


@contextmanager
def warnings_for_errors(activity: str) -> Iterator[None]:
    """Turn an error of an installed plugin, whose code runs in the context, into a PluginWarning.

    activity: what failed, for the message. Output of the plugin goes to stderr, because stdout has the result of a
    command, such as JSON.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except Terminated:
        raise
    except (Exception, SystemExit) as error:
        details = "\n" + "".join(traceback.format_exception(error)) if shows_tracebacks() else ""
        warnings.warn(f"{activity}: {_reason(error)}{details}", PluginWarning, stacklevel=4)


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
        self.load_seconds: dict[str, float] = {}  # of installed plugins, which delay every command
        self.register_seconds: dict[str, float] = {}  # of all plugins, which delay `kdkit list` and every run
        self._installed: set[str] = set()
        self._registries: dict[str, Registry] | None = None  # built at the first use, and after each change

    def add(self, plugin: object, name: str, *, installed: bool = False) -> None:
        """Add a plugin: a module or an object with hooks.

        installed: whether it is part of every run, so that a failing hook of it causes only a warning.
        Raises PluginError if one of its hooks does not exist or has other arguments.
        """
        equal = self.manager.get_name(plugin)
        if equal is not None and self.manager.get_plugin(equal) is not plugin:
            raise PluginError(
                f"plugins {equal!r} and {name!r} are equal (==), so only one of them would be called; compare them by "
                "identity, as with @dataclass(eq=False)"
            )
        if equal is not None:
            return
        if isinstance(plugin, type):
            raise PluginError(f"a plugin must be a module or an object with hooks; got {describe(plugin)}")
        if self.manager.has_plugin(name):
            raise PluginError(f"a plugin named {name!r} is already loaded; rename the second one")
        try:
            self.manager.register(plugin, name=name)
            self.manager.check_pending()  # rejects hooks without a specification
        except pluggy.PluginValidationError as error:
            self.remove(plugin)
            raise PluginError(self._explain(error, plugin, name)) from error
        if installed:
            self._installed.add(name)
        self._registries = None

    def extended(self, plugins: Sequence[object]) -> "Plugins":
        """Return a new collection with more plugins."""
        extended = Plugins()
        for name, plugin in self.manager.list_name_plugin():
            extended.add(plugin, name, installed=name in self._installed)
        for plugin in plugins:
            if isinstance(plugin, type | str):
                raise PluginError(f"a callback must be an object with hooks; got {describe(plugin)}")
            # With the id, so that two callbacks of one class have different names.
            extended.add(plugin, f"{type(plugin).__name__}-{id(plugin)}")
            extended._require_hooks(plugin)
        return extended

    def _require_hooks(self, callback: object) -> None:
        """Raise PluginError if a callback has no hook, probably because a decorator is missing."""
        if self.manager.get_hookcallers(callback):
            return
        names = ", ".join(undecorated_hooks(callback))
        example = f"its {names}" if names else "a method, such as epoch_ended(self, event),"
        raise PluginError(
            f"the callback {type(callback).__name__} has no hooks, so it would never be called; decorate {example} "
            "with @kdkit.hookimpl"
        )

    def remove(self, plugin: object) -> None:
        """Remove a plugin, if it is registered."""
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

    def implementations(self, hook: str) -> Iterator[tuple[str, Callable[[Any], Any]]]:
        """Yield the name of each plugin that implements a hook, kdkit's own first, and its function of one argument.

        The caller calls them one by one instead of through pluggy, so that each error is attributed to its plugin.
        """
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():  # in the order of registration
            yield implementation.plugin_name, partial(_call, implementation)

    @contextmanager
    def errors_of(self, plugin: str, activity: str) -> Iterator[None]:
        """Handle errors of the named plugin, whose hook runs in the context.

        activity: what the hook does, such as "add its commands". An error of an installed plugin becomes a
        PluginWarning, because it must not end a command that does not use the plugin. Other plugins raise PluginError.
        """
        message = f"plugin {plugin!r} cannot {activity}"
        if plugin in self._installed:
            with warnings_for_errors(message):
                yield
            return
        try:
            yield
        except KdkitError:
            raise
        except Exception as error:  # a hook may raise anything, such as an ImportError
            raise PluginError(f"{message}: {_reason(error)}") from error

    def _build_registry(self, kind: str) -> Registry:
        registry = Registry(kind)
        for plugin, call in self.implementations(f"register_{kind}"):

            def register(name: str, factory: Any, plugin: str = plugin) -> None:
                try:
                    registry.register(name, factory, plugin=plugin)
                except PluginError as error:
                    if plugin not in self._installed:
                        raise
                    # Skip only this entry, not those that follow.
                    warnings.warn(f"{error}; this entry is skipped", PluginWarning, stacklevel=3)

            began = time.perf_counter()
            with self.errors_of(plugin, f"register its {kind}"):
                call(register)
            seconds = time.perf_counter() - began
            self.register_seconds[plugin] = self.register_seconds.get(plugin, 0.0) + seconds
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
            accepted = [*parameters_by_name(specifications[attribute])]
            for argument in parameters_by_name(getattr(plugin, attribute)):
                if argument not in accepted:
                    return (
                        f"plugin {name!r} implements {attribute!r} with an argument {argument!r}, which kdkit does not "
                        f"pass; {did_you_mean(argument, accepted)}"
                    )
        return f"plugin {name!r} does not match the hooks: {str(error).strip()}"


def undecorated_hooks(plugin: object) -> list[str]:
    """Return the functions of a plugin that have the name of a hook but lack its decorator."""
    return [
        name
        for name, specification in vars(hooks).items()
        if hasattr(specification, "kdkit_spec")
        and inspect.isroutine(function := getattr(plugin, name, None))
        and not hasattr(function, "kdkit_impl")
    ]


def _call(implementation: pluggy.HookImpl, argument: Any) -> Any:
    return implementation.function(*([argument] if implementation.argnames else []))  # a hook may omit the argument


def _reason(error: BaseException) -> str:
    """Return an error as one line, with its class unless it is an error of kdkit, whose messages are clear."""
    return first_line(error) if isinstance(error, KdkitError) else f"{type(error).__name__}: {first_line(error)}"
