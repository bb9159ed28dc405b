"""The folder of a run: the files that a run writes, and the checks for resuming it."""

import json
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import Timeout
from torch import Tensor

from kdkit.engine.storage.measurements import MEASUREMENTS, Measurements
from kdkit.engine.storage.run_files import FORMAT, RECORD, RunFiles, require_format
from kdkit.engine.storage.stage_folder import SUMMARY, NoStageFolder, StageFolder
from kdkit.errors import RunFolderError, did_you_mean, first_line, shortened
from kdkit.metrics.base import MetricResult
from kdkit.nets.weights import TRAINING_NAMES, runs_hint, runs_in, stage_number
from kdkit.plugins.events import BaselineDifference
from kdkit.utils.files import Content, delete_temporary_files, exists, is_file, is_temporary, require_writable, write
from kdkit.utils.locks import FileLock
from kdkit.utils.read_json import mapping, read_json, require_object
from kdkit.utils.reprs import differing, without_addresses
from kdkit.utils.sealed import explain_unreadable_file, json_parts, read_sealed_json, tensor_parts

METRICS = "metrics.json"
SAMPLES = "samples.safetensors"

# A run is resumed only if all of these are equal, unless forced. The device and the number of processes may differ.
_MUST_MATCH = (
    *("recipe_sha256", "options", "seed", "precision", "data", "training_samples", "draws"),
    *("sampler", "baseline", "stages", "nets", "terms", "trainings", "monitors", "teacher_cache"),
)
_VERSIONS = ("kdkit", "torch")  # must match too
LOCK = ".lock"
_RECIPE = "recipe.py"
_HINTS = {
    "data": " (random data that is created outside recipe() differs each time: create it inside, where random numbers "
    "are seeded, or use a seeded generator)",
    "recipe_sha256": " (the code of the recipe has changed)",
}


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one run. writes: False on all ranks except the first, which then write nothing."""

    path: Path
    writes: bool = True

    @classmethod
    def create(cls, path: Path, record: Mapping[str, Any], recipe: bytes | None) -> "RunFolder":
        """Create a run folder. Raises RunFolderError if the path exists and is not an empty folder.

        The folder of a run that was killed before it wrote its record counts as empty.
        recipe: the content of the recipe file, if there is one.
        """
        cls.require_usable(path, resume=False)
        with _explain_unwritable(path):
            delete_temporary_files(path)
            # The record comes first: without it, files of the run could not be distinguished from files of the user.
            write(path / RECORD, *json_parts({"format": FORMAT, **_plain(record)}))
            _copy_recipe(path, recipe)
        return cls(path)

    @classmethod
    def reopen(
        cls,
        path: Path,
        record: Mapping[str, Any],
        recipe: bytes | None = None,
        *,
        force: bool = False,
        tidy: bool = True,
    ) -> "RunFolder":
        """Open the folder of a run to resume it.

        force: resume a run that has changed, record the changes, and warn of stages to which they do not apply.
        Otherwise raises RunFolderError with the changes.
        tidy: delete temporary files of killed processes; False if other processes are writing to the folder.
        """
        before, current = read_record(path), _plain(record)
        changes = _changes(before, current)
        if changes and not force:
            raise RunFolderError(
                f"{path} holds a run that differs in its {'; and in its '.join(changes)}; resume it as it was started, "
                "choose another folder, or resume it with these changes (--force, or force=True)"
            )
        _warn_of_other_plugins(path, before, current)
        with _explain_unwritable(path):
            if tidy:
                delete_temporary_files(path)
                if not exists(path / _RECIPE):  # the run was killed after it wrote its record
                    _copy_recipe(path, recipe)
            if changes:
                _warn_of_unchanged_stages(path)
                earlier = before.get("forced")
                forced = [*(earlier if isinstance(earlier, list) else ()), *changes]
                _copy_recipe(path, recipe)
                write(path / RECORD, *json_parts({"format": FORMAT, **current, "forced": forced}))
        return cls(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing to this folder. Raises RunFolderError if another process is writing.

        The lock of a killed process is released. Some network file systems have no locks; then the file names the
        process, and the lock counts as released only if that process ended on this machine.
        """
        # A singleton, because stages of a run may take the lock that the whole run already holds.
        with locked_folder(self.path, FileLock(self.path / LOCK, is_singleton=True), _unwritable):
            yield

    @staticmethod
    def require_usable(path: Path, *, resume: bool) -> None:
        """Raise the error that creating or resuming this folder would raise, without writing anything."""
        if resume:
            if not exists(path):
                near = runs_in(path.parent)
                hint = f"; {did_you_mean(path.name, near)}" if near else ""
                raise RunFolderError(
                    f"there is no run in {path} to resume{hint}; to start one, leave out --resume, or resume=True"
                )
            read_record(path)
            return
        with _explain_unwritable(path):
            if exists(path) and not _is_empty(path):
                if exists(path / RECORD):
                    raise RunFolderError(
                        f"{path} already holds a run; resume it (--resume, or resume=True), choose another folder, or "
                        "delete this one"
                    )
                raise RunFolderError(f"{path} exists and is not a run folder; choose a path that does not exist")
            require_writable(path)

    def stage(self, index: int, name: str) -> StageFolder:
        """Return the folder of a stage. index: counted from 0; folder names count from 1."""
        return StageFolder(self.path / f"{index + 1}-{name}", writes=self.writes)

    def save_metrics(
        self,
        reported_on: str,
        metrics: Mapping[str, Mapping[str, MetricResult]],
        differences: Sequence[BaselineDifference] = (),
        *,
        complete: bool = True,
    ) -> None:
        """Save the metrics of every network, their split, and the differences from baselines. NaN becomes null.

        complete: False if the networks and the differences that are still missing will be saved later.
        """
        table = {net: {name: _as_json(result) for name, result in results.items()} for net, results in metrics.items()}
        content: dict[str, Any] = {"format": FORMAT, "reported_on": reported_on, "metrics": table}
        if differences:
            content["differences"] = [asdict(difference) for difference in differences]
        if not complete:
            content["complete"] = False
        self._write(METRICS, json_parts(content))

    def save_samples(self, ids: Tensor, tensors: Mapping[str, Tensor], names: Sequence[str]) -> None:
        """Save samples for a report. ids: (samples,) int64. tensors: by name, (samples, ...). names: may be empty."""
        copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in {**tensors, "ids": ids}.items()}
        self._write(SAMPLES, tensor_parts(copies, {"format": FORMAT, "names": [*names]}))

    def save_training_names(self, digests: Tensor) -> None:
        """Save digests of the names of the training samples, (samples,) int64, if there are any."""
        if len(digests):
            self._write(TRAINING_NAMES, tensor_parts({"names": digests}, {"format": FORMAT}))

    def save_measurements(self, measurements: Measurements) -> None:
        """Save the measurements of the networks."""
        self._write(MEASUREMENTS, json_parts({"format": FORMAT, **measurements.as_dict()}))

    def _write(self, name: str, parts: Sequence[Content]) -> None:
        RunFiles(self.path, self.writes).write(self.path / name, *parts)


@dataclass(frozen=True, slots=True)
class NoRunFolder(RunFolder):
    """Takes the place of the folder in a run without one: nothing is saved, and there is nothing to load."""

    path: Path = Path()
    writes: bool = False

    def stage(self, index: int, name: str) -> StageFolder:
        """Return a stage folder in which nothing is saved."""
        return NoStageFolder()

    def save_metrics(self, *_: object, **_options: object) -> None:
        """Do nothing."""


def can_resume(path: Path) -> bool:
    """Whether a folder has a run that wrote its record."""
    return is_file(path / RECORD)


def how_to_resume(path: Path, record: Mapping[str, Any]) -> str:
    """Return the command or the Python code that resumes a run. record: of the run."""
    if isinstance(record.get("command"), Mapping):
        ranks = record.get("processes", 1)
        kdkit = "kdkit" if ranks == 1 else f"torchrun --nproc-per-node={ranks} -m kdkit"
        return f"{kdkit} run --resume {shlex.quote(str(path))}"
    if is_in_study(path):
        return "run the Python script that started it again; its study or sweep skips finished runs"
    return f"kdkit.run(..., out={str(path)!r}, resume=True) in Python"


def is_in_study(path: Path) -> bool:
    """Whether a run folder is one of several, such as of a study or of several seeds."""
    return (path.resolve().parent / LOCK).is_file()


def resumable_files(path: Path) -> list[str]:
    """Return the files that the stages of a run are resumed or loaded from, as paths relative to its folder."""
    files = [*path.glob("*/stage.json"), *path.glob("*/checkpoint-*.safetensors")]
    return sorted(str(file.relative_to(path)) for file in files)


def was_killed_at_start(path: Path) -> bool:
    """Whether a run in this folder was killed before it wrote its record: only the lock is there."""
    return is_file(path / LOCK) and _is_empty(path)


def default_path(name: str) -> Path:
    """Return a new path for a run without `out`: runs/<name>-<time>."""
    stem = f"{name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    path, count = Path("runs") / stem, 1
    while path.exists():
        count += 1
        path = Path("runs") / f"{stem}-{count}"
    return path


def read_record(path: Path) -> dict[str, Any]:
    """Return `run.json`. Raises RunFolderError if it is missing or cannot be read, or has another format."""
    file = path / RECORD
    with explain_unreadable_file(file, "choose another folder (--out FOLDER, or out=FOLDER)"):
        if not is_file(file) and runs_in(path):
            raise RunFolderError(f"{path} is not the folder of one run: it {runs_hint(path)}")
        if not exists(path):
            near = runs_in(path.parent)
            hint = did_you_mean(path.name, near) if near else "expected the folder of a run"
            raise RunFolderError(f"there is no folder {path}; {hint}")
        if not is_file(file):
            hint = f"; it is a part of the run {path.parent}" if (path.parent / RECORD).is_file() else ""
            in_studies = sorted(path.glob(f"*/*/{RECORD}"))
            hint = f"; did you mean {in_studies[0].parent.parent}?" if in_studies else hint
            raise RunFolderError(f"{path} holds no run: there is no {RECORD} in it{hint}")
        record = require_object(read_json(file))
        require_format(record, file)  # first: other formats have no checksum
        return read_sealed_json(file)


def _is_empty(path: Path) -> bool:
    """Whether a path is a folder without files, except for those of a run that has not written its record yet."""
    return path.is_dir() and all(file.name == LOCK or is_temporary(file, RECORD) for file in path.iterdir())


def _copy_recipe(path: Path, recipe: bytes | None) -> None:
    if recipe is not None:
        write(path / _RECIPE, recipe)


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record as it would be read from its file."""
    plain: dict[str, Any] = json.loads(json.dumps(record, default=str))
    return plain


def _changes(before: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return the differences between two records of a run, with both values."""
    pairs = {key: (before.get(key), current.get(key)) for key in _MUST_MATCH}
    versions = [mapping(record, "versions") for record in (before, current)]
    pairs |= {f"version of {name}": (versions[0].get(name), versions[1].get(name)) for name in _VERSIONS}
    if before.get("stages") != current.get("stages"):
        for name in ("nets", "terms", "trainings", "monitors"):  # they follow from the stages
            del pairs[name]
    changes = []
    for key, values in pairs.items():
        expected, actual = map(_without_addresses, values)
        if expected != actual:
            expected, actual = map(shortened, differing(expected, actual))
            changes.append(f"{key.replace('_', ' ')}: expected {expected}, got {actual}{_HINTS.get(key, '')}")
    return changes


def _warn_of_other_plugins(path: Path, before: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Warn of packages of plugins that have changed since a run began. The recipe may use them or not."""
    code = [mapping(record, "plugin_code") for record in (before, current)]
    versions = [mapping(record, "versions") for record in (before, current)]
    for name in code[0]:
        if code[0][name] != code[1].get(name):
            expected, actual = (shortened(record.get(name, "not installed"), 60) for record in versions)
            change = "its files differ" if expected == actual else f"then {expected}, now {actual}"
            warnings.warn(
                f"the package {name} of a plugin has changed since {path} began ({change}); if the recipe uses it, the "
                "results are those of no single version: start a new run",
                stacklevel=3,
            )


def _warn_of_unchanged_stages(path: Path) -> None:
    """Warn of the stages of a run that has changed to which the changes do not apply, or only in part."""
    finished = {file.parent for file in path.glob(f"*/{SUMMARY}")}
    begun = {file.parent for file in path.glob("*/checkpoint-*.safetensors")} - finished
    stages = [
        f"{stage.name} is not trained again"
        if stage in finished
        else f"{stage.name} keeps the optimizer and the learning rate schedule of its checkpoint, with their options"
        for stage in sorted(finished | begun, key=stage_number)
    ]
    if stages:
        warnings.warn(
            f"the changes do not apply to all of {path}: {'; '.join(stages)}; to train a stage again, delete its "
            "folder",
            stacklevel=3,
        )


def _as_json(result: MetricResult) -> dict[str, Any]:
    fields = asdict(result)
    if result.interval is None:  # only BootstrapInterval computes one
        return {key: fields[key] for key in ("value", "by_class", "note")}
    return fields


@contextmanager
def locked_folder(
    folder: Path, lock: FileLock, unwritable: Callable[[Path, Exception], RunFolderError]
) -> Iterator[None]:
    """Create a folder and hold its lock. Raises RunFolderError if another process holds it.

    unwritable: returns the error for a folder that cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunFolderError(
            f"another process is running in {folder}; wait until it ends, or choose another folder"
        ) from error
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):  # the folder may have been deleted
            Path(lock.lock_file).touch()  # it marks a study, and filelock deletes it on Windows


@contextmanager
def _explain_unwritable(path: Path) -> Iterator[None]:
    """Raise RunFolderError if a run folder cannot be written."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError if the path contains a null character
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: Exception) -> RunFolderError:
    return RunFolderError(
        f"the run folder {path} cannot be written: {first_line(error)}; choose another (--out FOLDER, or out=FOLDER)"
    )


def _without_addresses(value: Any) -> Any:
    """Return a record with memory addresses removed from all of its strings."""
    if isinstance(value, list):
        return [_without_addresses(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_addresses(item) for key, item in value.items()}
    return without_addresses(value) if isinstance(value, str) else value
