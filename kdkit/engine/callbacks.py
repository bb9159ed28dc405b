"""Call the callbacks of a run, so that they cannot change it by drawing random numbers or by failing."""

import traceback
import warnings
from types import ModuleType
from typing import Any

import torch

from kdkit.errors import KdkitError, PluginWarning, describe_error, shows_tracebacks
from kdkit.plugins.events import StopTraining
from kdkit.utils.paths import preserve_working_directory

_MAY_STOP = ("step_ended", "epoch_ended")  # hooks that are called during the training of a stage


class Callbacks:
    """The callback hooks of a run's plugins, in pluggy's order: the plugin that was registered last is called first.

    The random state of torch on the CPU and the working directory are restored after each call; those of Python, numpy
    and GPUs are not, because copying them in each step takes far longer. The first error of each hook of a callback
    becomes a warning; later ones are counted, and a warning at the end of the run gives the count. StopTraining ends
    the stage, and a KdkitError ends the run, see `raise_error`.
    hook: the hooks of a plugin manager. enabled: False to call no callbacks; with several ranks, only the first one
    calls them.
    """

    def __init__(self, hook: Any, *, enabled: bool) -> None:
        self._hook = hook
        self._enabled = enabled
        self._failures: dict[tuple[str, str], tuple[str, int]] = {}  # name and count by plugin and hook
        self._stop: str | None = None  # the callback that ends the stage, and its reason
        self._error: KdkitError | None = None  # ends the run after the checkpoint of the epoch
        self._listeners: dict[str, list[Any]] = {}  # hook implementations by hook, cached for the training loop

    def has_listeners(self, hook: str) -> bool:
        """Whether any callback implements this hook."""
        return bool(self._implementations(hook))

    def call(self, hook: str, event: Any) -> None:
        """Call every callback that implements this hook.

        Raises the KdkitError of a callback; for epoch_ended, `raise_error` raises it after the epoch is saved.
        """
        if implementations := self._implementations(hook):
            state = torch.get_rng_state()
            with preserve_working_directory():  # the run folder may be relative to it
                for implementation in implementations:
                    self._call(implementation, hook, event)
            torch.set_rng_state(state)
        if hook == "run_ended":
            self._report_counts()
        elif hook != "epoch_ended":  # the finished epoch is not saved yet
            self.raise_error()

    def _call(self, implementation: Any, hook: str, event: Any) -> None:
        try:
            implementation.function(*([event] if implementation.argnames else []))
        except StopTraining as request:
            if hook not in _MAY_STOP:
                self._report(implementation, hook, request)
            elif self._stop is None:
                name = _name_of(implementation)
                self._stop = f"{name}: {request}" if str(request) else name
        except KdkitError as error:
            if hook == "run_ended":  # there is nothing left to end, and the run may already have an error
                self._report(implementation, hook, error)
            elif self._error is None:
                error.add_note(f"callback {_name_of(implementation)!r} raised this in its {hook} to end the run")
                self._error = error
        except Exception as error:  # an error of a user-defined callback must not end the run
            self._report(implementation, hook, error)

    def raise_error(self) -> None:
        """Raise the KdkitError of a callback that ends the run, if there is one."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def take_stop(self) -> str | None:
        """Return the callback that raised StopTraining since the last call, with its message; None if none did."""
        stop, self._stop = self._stop, None
        return stop

    def _report(self, implementation: Any, hook: str, error: Exception) -> None:
        """Warn about the first error of a callback's hook, and count further ones."""
        key = (implementation.plugin_name, hook)
        name, count = self._failures.get(key, (_name_of(implementation), 0))
        self._failures[key] = name, count + 1
        if count > 0:
            return
        advice = "; to end a stage, raise kdkit.StopTraining" if hook in _MAY_STOP else ""
        details = "\n" + "".join(traceback.format_exception(error)) if shows_tracebacks() else ""
        warnings.warn(
            f"callback {name!r} failed in its {hook}: {describe_error(error)}; the run continues, and further errors "
            f"are counted{advice}{details}",
            PluginWarning,
            stacklevel=4,
        )

    def _report_counts(self) -> None:
        for (_plugin, hook), (name, count) in self._failures.items():
            if count > 1:
                warnings.warn(f"callback {name!r} failed in {count} calls of its {hook}", PluginWarning, stacklevel=3)

    def _implementations(self, hook: str) -> list[Any]:
        if hook not in self._listeners:
            implementations = getattr(self._hook, hook).get_hookimpls() if self._enabled else []
            self._listeners[hook] = list(reversed(implementations))
        return self._listeners[hook]


def _name_of(implementation: Any) -> str:
    """Return the name of a module, or of an object's class, because a repeated run must record the same name."""
    is_module = isinstance(implementation.plugin, ModuleType)
    return str(implementation.plugin_name if is_module else type(implementation.plugin).__name__)
