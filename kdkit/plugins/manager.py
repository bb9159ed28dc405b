"""Find plugins, refuse those that do not fit, and fill the shelves from them."""

import warnings
from collections.abc import Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from kdkit.errors import KdkitError, PluginError, did_you_mean
from kdkit.plugins import builtin, hooks
from kdkit.plugins.registry import REGISTRIES, Registry

GROUP = "kdkit"


class Plugins:
    """The plugins of one run: what kdkit ships, what is installed, and what a recipe file adds."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(GROUP)
        self.manager.add_hookspecs(hooks)
        self._shelves: dict[str, Registry] | None = None

    def add(self, plugin: object, name: str) -> None:
        """Add a plugin: a module or an object with hooks. Raises PluginError for a hook that does not exist or fit."""
        if self.manager.is_registered(plugin):
            return
        if self.manager.has_plugin(name):
            raise PluginError(f"there is a plugin {name!r} already; give the other one another name")
        try:
            self.manager.register(plugin, name=name)
            self.manager.check_pending()
        except pluggy.PluginValidationError as error:
            self.remove(plugin)
            raise PluginError(self._explain(error, plugin, name)) from error
        self._shelves = None

    def extended(self, plugins: Sequence[object]) -> "Plugins":
        """Return these plugins and others, leaving this collection as it is."""
        both = Plugins()
        for name, plugin in self.manager.list_name_plugin():
            both.add(plugin, name)
        for plugin in plugins:
            both.add(plugin, f"{type(plugin).__name__}-{id(plugin)}")
        return both

    def remove(self, plugin: object) -> None:
        """Take a plugin away again; one that is not there is no matter."""
        if self.manager.is_registered(plugin):
            self.manager.unregister(plugin)
            self._shelves = None

    def registry(self, kind: str) -> Registry:
        """Return a shelf by kind: losses, taps, schedules, ramps, models, datasets or scores."""
        if kind not in REGISTRIES:
            raise PluginError(f"{kind!r} is not a shelf; {did_you_mean(kind, REGISTRIES)}")
        if self._shelves is None:
            self._shelves = {each: self._filled(each) for each in REGISTRIES}
        return self._shelves[kind]

    @property
    def hook(self) -> Any:
        """Every hook, to be called by name with keyword arguments."""
        return self.manager.hook

    def _filled(self, kind: str) -> Registry:
        registry = Registry(kind)
        hook = getattr(self.manager.hook, f"register_{kind}")
        for implementation in hook.get_hookimpls():  # in the order of registration, kdkit's own first

            def register(name: str, make: Any, plugin: str = implementation.plugin_name) -> None:
                registry.register(name, make, plugin=plugin)

            try:
                implementation.function(*([register] if implementation.argnames else []))
            except KdkitError:
                raise
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                raise PluginError(
                    f"plugin {implementation.plugin_name!r} cannot register its {kind}: {reason}"
                ) from error
        return registry

    def _explain(self, error: pluggy.PluginValidationError, plugin: object, name: str) -> str:
        known = [each for each in vars(hooks) if hasattr(getattr(hooks, each), "kdkit_spec")]
        for each in dir(plugin):
            if self.manager.parse_hookimpl_opts(plugin, each) is not None and each not in known:
                return f"plugin {name!r} has a hook {each!r}, which kdkit does not; {did_you_mean(each, known)}"
        return f"plugin {name!r} does not fit: {str(error).strip()}"


@cache
def installed() -> Plugins:
    """Return the plugins that kdkit ships and those installed beside it, found once by their entry points."""
    plugins = Plugins()
    plugins.add(builtin, "kdkit")
    for point in sorted(entry_points(group=GROUP), key=lambda each: each.name):
        _load(plugins, point)
    return plugins


def registry(kind: str) -> Registry:
    """Return a shelf of what is installed: `kdkit.shelf("losses")["soft_targets"](temperature=4)`."""
    return installed().registry(kind)


def _load(plugins: Plugins, point: EntryPoint) -> None:
    try:
        plugins.add(point.load(), point.name)
    except Exception as error:  # whatever a stranger's import raises is one warning, not the end
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        package = point.dist.name if point.dist is not None else point.value
        warnings.warn(
            f"plugin {point.name!r} of {package} is left out, since it could not be loaded: {reason}",
            RuntimeWarning,
            stacklevel=2,
        )
