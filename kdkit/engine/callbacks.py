"""Call the callbacks of a run, without letting them change it by drawing random numbers or by failing."""

import warnings
from types import ModuleType
from typing import Any

import torch

from kdkit.plugins.events import StopTraining

_MAY_STOP = ("step_ended", "epoch_ended")  # hooks during whose events a stage is trained


class Callbacks:
    """The callback hooks of a run's plugins, in pluggy's order: the plugin that was registered last is called first.

    The random state of torch is restored after each call. A callback that raises is dropped, with a warning, unless it
    raises StopTraining.
    hook: the hooks of a plugin manager. enabled: False to call none; of several ranks, only the first one calls
    callbacks.
    """

    def __init__(self, hook: Any, *, enabled: bool = True) -> None:
        self._hook = hook
        self._enabled = enabled
        self._dropped: set[str] = set()
        self._stop: str | None = None  # who wants to end the stage, and why
        self._listeners: dict[str, list[Any]] = {}  # hook implementations by hook, cached for the training loop

    def has_listeners(self, hook: str) -> bool:
        """Whether any callback implements this hook."""
        return bool(self._implementations(hook))

    def call(self, hook: str, event: Any) -> None:
        """Call every callback that implements this hook."""
        implementations = self._implementations(hook)
        if not implementations:
            return
        state = torch.get_rng_state()
        for implementation in implementations:
            try:
                implementation.function(*([event] if implementation.argnames else []))
            except StopTraining as request:
                if hook not in _MAY_STOP:
                    self._drop(implementation, hook, request)
                elif self._stop is None:
                    # Without the id in the name of an object's plugin, since a repeated run must record the same.
                    plugin = implementation.plugin
                    is_module = isinstance(plugin, ModuleType)
                    name = implementation.plugin_name if is_module else type(plugin).__name__
                    self._stop = f"{name}: {request}" if str(request) else name
            except Exception as error:  # an error of a user-defined callback must not end the run
                self._drop(implementation, hook, error)
        torch.set_rng_state(state)

    def take_stop(self) -> str | None:
        """Return the callback that raised StopTraining since the last call, with its message; None if none did."""
        stop, self._stop = self._stop, None
        return stop

    def _drop(self, implementation: Any, hook: str, error: Exception) -> None:
        self._dropped.add(implementation.plugin_name)
        self._listeners.clear()
        warnings.warn(
            f"callback {implementation.plugin_name!r} is dropped, because its {hook} raised "
            f"{type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=3,
        )

    def _implementations(self, hook: str) -> list[Any]:
        if hook not in self._listeners:
            implementations = getattr(self._hook, hook).get_hookimpls() if self._enabled else []
            self._listeners[hook] = [
                implementation
                for implementation in reversed(implementations)
                if implementation.plugin_name not in self._dropped
            ]
        return self._listeners[hook]
