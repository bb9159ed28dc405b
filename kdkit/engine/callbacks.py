"""Tell watchers how a run goes, and keep them from changing it: by what they draw, or by failing."""

import warnings
from typing import Any

import torch

from kdkit.plugins.manager import Plugins


class Callbacks:
    """The watching hooks of a run's plugins, in pluggy's order: those that came last are told first.

    The random state is the same after they were told as before. One that raises is dropped, with a warning.
    speaks: whether anybody is told at all; of several processes the first one speaks.
    """

    def __init__(self, plugins: Plugins, *, speaks: bool = True) -> None:
        self._hook = plugins.hook
        self._speaks = speaks
        self._dropped: set[str] = set()
        self._known: dict[str, list[Any]] = {}

    def watch(self, hook: str) -> bool:
        """Whether anybody is to be told through this hook."""
        return bool(self._listening(hook))

    def tell(self, hook: str, event: Any) -> None:
        """Tell everybody who has this hook."""
        open_taps = self._listening(hook)
        if not open_taps:
            return
        state = torch.get_rng_state()
        for each in open_taps:
            try:
                each.function(*([event] if each.argnames else []))
            except Exception as error:  # whatever a stranger's watcher raises must not cost the run
                self._dropped.add(each.plugin_name)
                self._known.clear()
                warnings.warn(
                    f"watcher {each.plugin_name!r} is dropped, since its {hook} raised {type(error).__name__}: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
        torch.set_rng_state(state)

    def _listening(self, hook: str) -> list[Any]:
        if hook not in self._known:
            implementations = getattr(self._hook, hook).get_hookimpls() if self._speaks else []
            self._known[hook] = [each for each in reversed(implementations) if each.plugin_name not in self._dropped]
        return self._known[hook]
