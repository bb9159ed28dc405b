"""The folder of a run: the files a run writes, and the checks for resuming it."""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from kdkit.engine.storage.stage_folder import FORMAT, StageFolder, require_format
from kdkit.errors import RunFolderError, first_line, shortened
from kdkit.metrics.base import MetricResult
from kdkit.nets.weight_files import runs_hint, runs_in
from kdkit.utils.files import to_json, write
from kdkit.utils.read_json import read_json

RECORD = "run.json"
METRICS = "metrics.json"

# A run is resumed only if all of these are the same; device, processes and versions may differ.
_MUST_MATCH = ("recipe_sha256", "options", "seed", "precision", "data", "stages", "nets", "trainings", "teacher_cache")
_HINTS = {
    "data": " (random data that is created outside recipe() differs each time: create it inside, where random numbers "
    "are seeded, or use a seeded generator)",
}


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one run. writes: False on all ranks but the first one, which then write nothing."""

    path: Path
    writes: bool = True

    @classmethod
    def create(cls, path: Path, record: Mapping[str, Any], recipe: Path | None) -> "RunFolder":
        """Create a run folder. Raises RunFolderError if the path exists and is not an empty folder."""
        cls.require_usable(path, resume=False)
        try:
            if recipe is not None:
                write(path / "recipe.py", recipe.read_bytes())
            write(path / RECORD, json.dumps({"format": FORMAT, **record}, indent=2, default=str))
        except OSError as error:
            raise _unwritable(path, error) from error
        return cls(path)

    @classmethod
    def reopen(cls, path: Path, record: Mapping[str, Any]) -> "RunFolder":
        """Open the folder of a run to resume it. Raises RunFolderError if it is the folder of another run."""
        before, current = read_record(path), json.loads(json.dumps(record, default=str))
        for key in _MUST_MATCH:
            if _without_addresses(before.get(key)) != _without_addresses(current.get(key)):
                raise RunFolderError(
                    f"{path} holds a run that differs in its {key.replace('_', ' ')}: expected "
                    f"{shortened(before.get(key))}, got {shortened(current.get(key))}; choose another folder, or "
                    "resume it as it was started"
                    f"{_HINTS.get(key, '')}"
                )
        return cls(path)

    @staticmethod
    def require_usable(path: Path, *, resume: bool) -> None:
        """Raise the RunFolderError that creating or resuming this folder would raise, without writing anything."""
        if resume:
            read_record(path)
            return
        try:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                if (path / RECORD).exists():
                    raise RunFolderError(
                        f"{path} already holds a run; resume it (--resume, or resume=True) or choose another folder"
                    )
                raise RunFolderError(f"{path} exists and is not a run folder; choose a path that does not exist")
            _require_writable(path)
        except (OSError, ValueError) as error:  # ValueError if the path has a null character
            raise _unwritable(path, error) from error

    def stage(self, index: int, name: str) -> StageFolder:
        """Return the folder of a stage. index: from 0; the folder's name counts from 1."""
        return StageFolder(self.path / f"{index + 1}-{name}", self.writes)

    def save_metrics(self, reported_on: str, metrics: Mapping[str, Mapping[str, MetricResult]]) -> None:
        """Save the metrics of every network, and their split; a value that is not finite becomes null."""
        if not self.writes:
            return
        table = {net: {name: _as_json(result) for name, result in results.items()} for net, results in metrics.items()}
        write(self.path / METRICS, to_json({"reported_on": reported_on, "metrics": table}, indent=2))


def can_resume(path: Path) -> bool:
    """Whether there is a run to resume; removes the files of one that was killed before it wrote its record."""
    if (path / RECORD).is_file():
        return True
    for file in (path / "recipe.py", *path.glob(".recipe.py.*"), *path.glob(f".{RECORD}.*")):
        file.unlink(missing_ok=True)
    return False


def default_path(name: str) -> Path:
    """Return a path for a run without `out`: runs/<name>-<time>, which does not exist yet."""
    stem = f"{name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    path, count = Path("runs") / stem, 1
    while path.exists():
        count += 1
        path = Path("runs") / f"{stem}-{count}"
    return path


def read_record(path: Path) -> dict[str, Any]:
    """Return `run.json`. Raises RunFolderError if there is no run, or it cannot be read, or its format is another."""
    file = path / RECORD
    try:
        if not file.is_file() and runs_in(path):
            raise RunFolderError(f"{path} is not the folder of one run: it {runs_hint(path)}")
        if not file.is_file():
            raise RunFolderError(f"{path} holds no run: there is no {RECORD} in it")
        record = read_json(file)
        if not isinstance(record, dict):
            raise ValueError(f"it holds a {type(record).__name__}, not an object")
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{file} cannot be read: {first_line(error)}; choose another folder (--out FOLDER, or out=FOLDER)"
        ) from error
    require_format(record, file)
    return record


def _as_json(result: MetricResult) -> dict[str, Any]:
    fields = asdict(result)
    if result.interval is None:  # only a BootstrapInterval has one
        return {key: fields[key] for key in ("value", "by_class", "note")}
    return fields


def _require_writable(path: Path) -> None:
    """Raise OSError if this path cannot be created; creates nothing."""
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
            (path / name).lstat()  # raises OSError if the name is too long


def _unwritable(path: Path, error: Exception) -> RunFolderError:
    return RunFolderError(
        f"the run folder {path} cannot be written: {first_line(error)}; choose another (--out FOLDER, or out=FOLDER)"
    )


def _without_addresses(value: Any) -> Any:
    """Remove memory addresses, such as in the repr of a function, which differ from process to process."""
    if isinstance(value, list):
        return [_without_addresses(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_addresses(item) for key, item in value.items()}
    return re.sub(r" at 0x[0-9a-fA-F]+", "", value) if isinstance(value, str) else value
