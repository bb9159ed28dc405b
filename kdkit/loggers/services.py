"""Log to the stores of trackio, MLflow and Weights & Biases, by default on this machine and without an account."""

import contextlib
import io
import json
import os
import re
import secrets
import time
from abc import abstractmethod
from pathlib import Path
from typing import Any

from kdkit.loggers.base import Logger, Values, hyperparameters, require_package
from kdkit.plugins.events import RunStarted
from kdkit.utils.files import write
from kdkit.utils.read_json import read_json

_PROJECT = "kdkit"


class _StoreLogger(Logger):
    """A log in a store that can add points but cannot remove them.

    A small file in the run folder has the identifier of the run in the store, and the last logged step. A resumed run
    continues the run in the store, and does not log a step twice: the values of the first time are kept.
    """

    _name: str  # of the file, the package and the extra

    def __init__(self) -> None:
        self._file: Path | None = None
        self._state: dict[str, Any] = {}

    @property
    def _package(self) -> Any:
        return require_package(self._name, self._name)  # not stored: loggers are pickled for workers

    @abstractmethod
    def _connect(self, run: RunStarted, identifier: str | None) -> str:
        """Start a run in the store, or continue the run with this identifier; return its identifier."""

    @abstractmethod
    def _send(self, step: int, values: Values) -> None:
        """Add values at a step."""

    def start(self, run: RunStarted, step: int) -> None:
        """Start a run in the store, or continue it if the run is resumed."""
        self._file = None if run.folder is None else run.folder / f"log-{self._name}.json"
        self._state = _read_state(self._file) if run.resumed else {}
        identifier = self._connect(run, self._state.get("run"))
        if identifier != self._state.get("run"):
            self._state = {"run": identifier, "step": 0}
        self._save()

    def log(self, step: int, values: Values, *, stage: str | None, epoch: int | None) -> None:
        """Send the values, unless they were sent before the run was resumed."""
        if stage is None:
            if not self._state.get("ended"):
                self._send(step, values)
                self._save(ended=True)
        elif step > self._state["step"]:
            self._send(step, values)
            self._save(step=step)

    def _save(self, **changes: Any) -> None:
        self._state |= changes
        if self._file is not None:
            write(self._file, json.dumps(self._state))


class TrackioLogger(_StoreLogger):
    """Log to trackio, on this machine; `trackio show --project kdkit` shows the runs.

    The store is a folder in the Hugging Face cache, or the folder in the environment variable TRACKIO_DIR.
    project: the project of the runs.
    Raises PluginError if the package trackio is missing.
    """

    _name = "trackio"

    def __init__(self, project: str = _PROJECT) -> None:
        super().__init__()
        self.project = project
        _ = self._package  # raises PluginError
        self._run: Any = None

    def _connect(self, run: RunStarted, identifier: str | None) -> str:
        # Runs are found by name, and folders in different places may have the same name.
        name = identifier or f"{_run_name(run)}-{secrets.token_hex(4)}"
        with contextlib.redirect_stdout(io.StringIO()):  # stdout is for results
            self._run = self._package.init(
                project=self.project,
                name=name,
                config=hyperparameters(run),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        return name

    def _send(self, step: int, values: Values) -> None:
        """Add values at a step; a thread of trackio writes them within a second."""
        self._run.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        """Wait until everything is written."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._package.finish()  # not the run's finish(), after which trackio would print when Python exits


class MlflowLogger(_StoreLogger):
    """Log to MLflow: to `mlflow.db` in the current folder, or the server of the variable MLFLOW_TRACKING_URI.

    `mlflow ui` shows the runs. Characters of names that MLflow does not allow become `_`.
    experiment: the name of the experiment, which is created if it does not exist. uri: of the store or server; from
    MLflow's own settings if None.
    Raises PluginError if the package mlflow is missing.
    """

    _name = "mlflow"

    def __init__(self, experiment: str = _PROJECT, *, uri: str | None = None) -> None:
        super().__init__()
        self.experiment, self.uri = experiment, uri
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would use the network
        _ = self._package  # raises PluginError
        self._client: Any = None

    def _connect(self, run: RunStarted, identifier: str | None) -> str:
        self._client = self._package.MlflowClient(tracking_uri=self.uri)
        if identifier is not None:
            self._client.set_terminated(identifier, "RUNNING")
            return identifier
        experiment = self._client.get_experiment_by_name(self.experiment)
        number = experiment.experiment_id if experiment else self._client.create_experiment(self.experiment)
        created: str = self._client.create_run(number, run_name=_run_name(run)).info.run_id
        params = [
            self._package.entities.Param(_allowed(name), str(value)[:6000])  # the longest text that MLflow accepts
            for name, value in hyperparameters(run).items()
        ]
        for first in range(0, len(params), 100):  # the most that MLflow accepts at once
            self._client.log_batch(created, params=params[first : first + 100])
        return created

    def _send(self, step: int, values: Values) -> None:
        timestamp = int(time.time() * 1000)  # in milliseconds
        metrics = [
            self._package.entities.Metric(_allowed(name), value, timestamp, step) for name, value in values.items()
        ]
        for first in range(0, len(metrics), 1000):  # the most that MLflow accepts at once
            self._client.log_batch(self._state["run"], metrics=metrics[first : first + 1000])

    def close(self, *, failed: bool) -> None:
        """Set the status of the run."""
        self._client.set_terminated(self._state["run"], "FAILED" if failed else "FINISHED")


class WandbLogger(_StoreLogger):
    """Log to Weights & Biases without a network: to `wandb` in the run folder, which `wandb sync` uploads.

    project: the project of the runs. mode: "offline", or "online" to upload during the run, with an account.
    Raises PluginError if the package wandb is missing.
    """

    _name = "wandb"

    def __init__(self, project: str = _PROJECT, *, mode: str = "offline") -> None:
        super().__init__()
        self.project, self.mode = project, mode
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would use the network
        _ = self._package  # raises PluginError
        self._run: Any = None

    def _connect(self, run: RunStarted, identifier: str | None) -> str:
        """Start a run, or continue the run with this identifier, in a new folder that `wandb sync` adds to it."""
        settings = self._package.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True
        )
        self._run = self._package.init(
            project=self.project,
            name=_run_name(run),
            dir=None if run.folder is None else str(run.folder),
            id=identifier or secrets.token_hex(4),
            resume="allow",
            mode=self.mode,
            config=hyperparameters(run),
            settings=settings,
        )
        return str(self._run.id)

    def _send(self, step: int, values: Values) -> None:
        self._run.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        """Finish the run."""
        self._run.finish(exit_code=int(failed))


def _run_name(run: RunStarted) -> str:
    """Return the name of the run folder, or of the recipe."""
    return run.recipe if run.folder is None else run.folder.resolve().name


def _allowed(name: str) -> str:
    """Return a name with the characters that MLflow allows in names of metrics and parameters."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)


def _read_state(file: Path | None) -> dict[str, Any]:
    """Return the identifier and the last step of a run; empty if there is no such file, or it is damaged."""
    try:
        state = {} if file is None else read_json(file)
    except (OSError, ValueError):
        return {}
    is_valid = isinstance(state, dict) and isinstance(state.get("run"), str) and type(state.get("step")) is int
    return state if is_valid else {}
