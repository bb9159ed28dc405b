"""What a run leaves on disk, and when it can be gone on with."""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from kdkit.engine.storage.stage_folder import StageFolder
from kdkit.errors import RunFolderError, did_you_mean, first_line
from kdkit.metrics import MetricResult
from kdkit.metrics.per_class import NetReport
from kdkit.utils.files import to_json, write


def read_reported(folder: Path, net: str) -> NetReport:
    """Return what a run folder holds of a net. Raises RunFolderError where it is none, or does not know the net."""
    run = _run(folder)
    stages: dict[str, Path] = {}  # a net that was trained in several stages is as the last one left it
    for file in sorted(folder.glob("*/predictions-*-validation.safetensors"), key=_number):
        stages[file.name.removeprefix("predictions-").removesuffix("-validation.safetensors")] = file.parent
    if net not in stages:
        raise RunFolderError(f"{folder} holds no predictions of {net!r}; {did_you_mean(net, list(stages))}")
    stage = StageFolder(stages[net])
    there = (stage.path / f"predictions-{net}-test.safetensors").exists()
    return NetReport(
        validation=stage.load_predictions(net, "validation"),
        test=stage.load_predictions(net, "test") if there else None,
        train=run.get("positives"),
    )


def nets_of_run(folder: Path) -> tuple[str, ...]:
    """Return the nets that a run scored. Raises RunFolderError where the folder holds no finished run."""
    try:
        return tuple(json.loads((folder / "metrics.json").read_text())["metrics"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{folder} holds no scores of a run ({first_line(error)}); give a finished run's"
        ) from error


def _number(file: Path) -> int:
    """Return the number of the stage that a file belongs to; 0 where its folder has none."""
    number = file.parent.name.split("-", 1)[0]
    return int(number) if number.isdecimal() else 0


def _run(folder: Path) -> dict[str, Any]:
    try:
        run: dict[str, Any] = json.loads((folder / "run.json").read_text())
        return run
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{folder} holds no run ({first_line(error)}); give the folder of a finished run"
        ) from error


RUN = "run.json"
COMPARED = ("recipe_sha256", "options", "seed", "precision", "data", "stages", "nets", "trainings", "teacher_cache")
HINTS = {
    "data": " (data that is made at random outside recipe() is other data each time: make it inside, where the seed is "
    "set, or from a generator with a seed of its own)",
}


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one run. writes: whether anything is kept in it; of several processes the first one writes."""

    path: Path
    writes: bool = True

    @classmethod
    def create(cls, path: Path, run: Mapping[str, Any], recipe: Path | None) -> "RunFolder":
        """Make a new run folder. Raises RunFolderError where something is already there."""
        cls.require_usable(path, resume=False)
        try:
            if recipe is not None:
                write(path / "recipe.py", recipe.read_bytes())
            write(path / RUN, json.dumps(run, indent=2, default=str))
        except OSError as error:
            raise _unwritable(path, error) from error
        return cls(path)

    @classmethod
    def reopen(cls, path: Path, run: Mapping[str, Any]) -> "RunFolder":
        """Open the folder of a run to go on with it. Raises RunFolderError where it is another run's."""
        before, now = _record(path), json.loads(json.dumps(run, default=str))
        for key in COMPARED:
            if _lasting(before.get(key)) != _lasting(now.get(key)):
                raise RunFolderError(
                    f"{path} holds a run that differs in its {key.replace('_', ' ')}: it had {before.get(key)!r}, "
                    f"this one has {now.get(key)!r}; choose another folder, or call it as before{HINTS.get(key, '')}"
                )
        return cls(path)

    @staticmethod
    def require_usable(path: Path, *, resume: bool) -> None:
        """Raise the RunFolderError that making this folder, or going on with its run, would end in; write nothing."""
        if resume:
            _record(path)
            return
        try:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                if (path / RUN).exists():
                    raise RunFolderError(
                        f"{path} already holds a run; go on with it (--resume, or resume=True) or choose another folder"
                    )
                raise RunFolderError(
                    f"{path} exists and is not a run folder; choose another, or one that does not exist"
                )
            _require_writable(path)
        except (OSError, ValueError) as error:  # ValueError for a null character
            raise _unwritable(path, error) from error

    def stage(self, index: int, name: str) -> StageFolder:
        """Return the folder of a stage, counted from 1."""
        return StageFolder(self.path / f"{index + 1}-{name}", self.writes)

    def save_metrics(self, reported_on: str, metrics: Mapping[str, Mapping[str, MetricResult]]) -> None:
        """Keep the scores of every net, and the split they were reported on; one that is not finite is null."""
        if not self.writes:
            return
        table = {
            net: {name: _told(compute_metrics) for name, compute_metrics in each.items()}
            for net, each in metrics.items()
        }
        write(self.path / "metrics.json", to_json({"reported_on": reported_on, "metrics": table}, indent=2))


def started(path: Path) -> bool:
    """Whether there is a run to go on with; removes what is left of one that was stopped before it wrote its record."""
    if (path / RUN).is_file():
        return True
    for file in (path / "recipe.py", *path.glob(".recipe.py.*"), *path.glob(f".{RUN}.*")):
        file.unlink(missing_ok=True)
    return False


def new_path(name: str) -> Path:
    """Return where a run goes that says nothing of it: runs/<name>-<time>, not there yet."""
    stem = f"{name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    path, count = Path("runs") / stem, 1
    while path.exists():
        count += 1
        path = Path("runs") / f"{stem}-{count}"
    return path


def _told(compute_metrics: MetricResult) -> dict[str, Any]:
    """Return a score as JSON has it; intervals only where they were asked for."""
    told = asdict(compute_metrics)
    return told if compute_metrics.interval is not None else {key: told[key] for key in ("value", "by_class", "note")}


def _record(path: Path) -> dict[str, Any]:
    """Return what a run says of itself. Raises RunFolderError where there is no run, or none that can be read."""
    file = path / RUN
    try:
        if not file.is_file():
            raise RunFolderError(f"{path} holds no run to go on with: there is no {RUN} in it")
        record = json.loads(file.read_text())
        if not isinstance(record, dict):
            raise ValueError(f"it holds a {type(record).__name__}, not an object")
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{file} cannot be read, so the run cannot be gone on with: {first_line(error)}; "
            "choose another folder (--out FOLDER, or out=FOLDER)"
        ) from error
    return record


def _require_writable(path: Path) -> None:
    """Raise OSError where the folders from the nearest existing one to this path cannot be made."""
    missing = []
    while not path.exists() and path != path.parent:
        missing.append(path.name)
        path = path.parent
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is a file")
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} may not be written to")
    for name in missing:
        with suppress(FileNotFoundError):
            (path / name).lstat()  # raises where the name is too long


def _unwritable(path: Path, error: Exception) -> RunFolderError:
    return RunFolderError(
        f"the run folder {path} cannot be written: {first_line(error)}; choose another (--out FOLDER, or out=FOLDER)"
    )


def _lasting(value: Any) -> Any:
    """Leave out where in memory a function lies, which its repr tells and which is another in each process."""
    if isinstance(value, list):
        return [_lasting(each) for each in value]
    if isinstance(value, dict):
        return {key: _lasting(each) for key, each in value.items()}
    return re.sub(r" at 0x[0-9a-fA-F]+", "", value) if isinstance(value, str) else value
