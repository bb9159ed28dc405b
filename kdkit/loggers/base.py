"""The base class of loggers, which names the values of a run and counts their steps."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from kdkit.errors import KdkitError, PluginError, first_line
from kdkit.plugins.events import EpochEnded, RunEnded, RunStarted, StageStarted
from kdkit.plugins.hooks import hookimpl
from kdkit.plugins.manager import registry

Values = Mapping[str, float]


class Logger(ABC):
    """A callback that logs the values of a run by name and step. A subclass implements `start`, `log` and `close`.

    Names are `train/<net>/<term>` without the weight of the term, `weight/<net>/<term>`, `val/<net>/<metric>`, `lr`,
    `seconds`, and at the end `test/<net>/<metric>`, with `/low` and `/high` for the bounds of an interval. If the data
    has no test split, these begin with `val_final`. A step counts the epochs of this stage and the planned epochs of
    all earlier stages, so a stage that ends early leaves a gap, and a resumed run has the same steps.
    """

    _pending: RunStarted | None = None  # a run whose log has not started
    _steps: Mapping[str, int] = {}  # before each stage
    _last_step = 0
    _is_open = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def prepare(self, run: RunStarted) -> None:  # noqa: B027  # most loggers need no check
        """Raise a KdkitError if this run cannot be logged; called before anything is trained."""

    @abstractmethod
    def start(self, run: RunStarted, step: int) -> None:
        """Start the log of a run. step: the last step that is not repeated; above 0 only if the run is resumed."""

    def repeat(self, stage: str, epoch: int) -> None:  # noqa: B027  # some loggers cannot
        """Drop the values of a stage from this epoch on, which are logged again. Called when a stage starts."""

    @abstractmethod
    def log(self, step: int, values: Values, *, stage: str | None, epoch: int | None) -> None:
        """Log the values of an epoch, counted from 0, or the metrics at the end of the run, if both are None."""

    @abstractmethod
    def close(self, *, failed: bool) -> None:
        """Close the log. failed: whether an error or a signal ended the run, which may be resumed."""

    @hookimpl
    def run_started(self, event: RunStarted) -> None:
        """Compute the steps of the stages."""
        # 0 for a stage without this setting keeps the steps of the other stages right.
        epochs = [int(event.settings.get(f"{stage}/epochs", 0)) for stage in event.stages]
        self._steps = dict(zip(event.stages, accumulate([0, *epochs]), strict=False))
        self._last_step = sum(epochs)
        self._pending, self._is_open = None, False  # left by an earlier run with the same logger
        self.prepare(event)
        self._pending = event

    @hookimpl
    def stage_started(self, event: StageStarted) -> None:
        """Start the log at the first stage, and continue it at a stage that resumes."""
        self._open(self._steps[event.name] + event.epoch)
        if self._is_open:
            self.repeat(event.name, event.epoch)

    @hookimpl
    def epoch_ended(self, event: EpochEnded) -> None:
        """Log the terms, the monitored metric and the learning rate."""
        if self._is_open:
            step = self._steps[event.stage] + event.epoch + 1
            self.log(step, epoch_values(event), stage=event.stage, epoch=event.epoch)

    @hookimpl
    def run_ended(self, event: RunEnded) -> None:
        """Log the metrics, unless an error ended the run, and close the log."""
        if event.error is None:
            self._open(self._last_step)  # a resumed run may have had nothing left to train
        if self._is_open:
            self._is_open = False
            try:
                if event.error is None:
                    self.log(self._last_step, result_values(event), stage=None, epoch=None)
            finally:
                self.close(failed=event.error is not None)

    def _open(self, step: int) -> None:
        # Tried once: a logger that cannot start causes one warning, and logs nothing.
        run, self._pending = self._pending, None
        if run is not None:
            self.start(run, step)
            self._is_open = True


def make_loggers(names: Sequence[str]) -> list[object]:
    """Return the loggers with these names from the plugins, each once.

    Raises RecipeError for an unknown name, and PluginError if a logger cannot be created, such as without its package.
    """
    factories, loggers = registry("loggers"), []
    for name in dict.fromkeys(names):
        try:
            loggers.append(factories[name]())
        except KdkitError:
            raise
        except Exception as error:  # a plugin may raise anything
            raise PluginError(
                f"logger {name!r} cannot be created: {type(error).__name__}: {first_line(error)}; if it needs "
                "arguments, create it in Python: kdkit.run(..., callbacks=[...])"
            ) from error
    return loggers


def require_package(module: str, extra: str) -> Any:
    """Return the module of an optional package. Raises PluginError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PluginError(
            f"logger {extra!r} needs a package that cannot be imported ({first_line(error)}): pip install "
            f"'kdkit[{extra}]'"
        ) from error


def hyperparameters(run: RunStarted) -> dict[str, str | int | float | bool]:
    """Return the hyperparameters of a run: settings by name, `option/<name>`, `parameters/<net>`, `version/<name>`."""
    options = {
        name: value if isinstance(value, str | int | float | bool) else str(value)
        for name, value in run.options.items()
    }
    return {
        "recipe": run.recipe,
        "device": run.device,
        **run.settings,
        **{f"option/{name}": value for name, value in options.items()},
        **{f"parameters/{net}": count for net, count in run.parameters.items()},
        **{f"version/{name}": version for name, version in run.versions.items()},
    }


def epoch_values(event: EpochEnded) -> dict[str, float]:
    """Return the values of an epoch by the names under which they are logged."""
    terms = {label: event.term_nets.get(label, event.stage) for label in event.terms}
    # In a stage with several nets, the label of a term begins with its net.
    paths = {label: f"{net}/{label.removeprefix(f'{net}: ')}" for label, net in terms.items()}
    values = {f"train/{paths[label]}": value for label, value in event.terms.items()}
    values |= {f"weight/{path}": event.weights[label] for label, path in paths.items() if label in event.weights}
    values |= {f"val/{net}/{event.monitor}": value for net, value in event.monitor_values.items()}
    values |= {"lr": event.learning_rate, "seconds": event.seconds}
    for kind, figures in (event.gradients or {}).items():  # "norms" and "cosines"
        values |= {f"gradient_{kind}/{label}": value for label, value in figures.items()}
    if event.peak_memory_bytes is not None:
        values["peak_memory_bytes"] = event.peak_memory_bytes
    return values


def result_values(event: RunEnded) -> dict[str, float]:
    """Return the metrics of a run, and the differences of students from their baselines, by name."""
    split = "test" if event.reported_on == "test" else "val_final"
    values: dict[str, float] = {}
    for net, results in event.metrics.items():
        for metric, result in results.items():
            values |= _with_bounds(f"{split}/{net}/{metric}", result.value, result.interval)
    for row in event.differences:
        values |= _with_bounds(f"difference/{row.student}/{row.metric}", row.value, row.interval)
    return values


def _with_bounds(name: str, value: float, interval: tuple[float, float] | None) -> dict[str, float]:
    bounds = {} if interval is None else {f"{name}/low": interval[0], f"{name}/high": interval[1]}
    return {name: value, **bounds}
