"""The folder of a stage: weights, checkpoints, history and predictions. Each file is written whole or not at all."""

import hashlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdkit.data.batch import Batch, nested_tensors
from kdkit.engine.storage.background import BackgroundWriter, wait_for_all
from kdkit.engine.storage.nested_state import flatten, unflatten
from kdkit.engine.storage.predictions import REDUCED, read_predictions
from kdkit.errors import RunFolderError, first_line
from kdkit.metrics.base import Predictions
from kdkit.nets.weights import stage_weights
from kdkit.utils.files import Content, append, delete, exists, is_file, nulls_to_nan, read_file, to_json, write
from kdkit.utils.read_json import parse_json
from kdkit.utils.sealed import json_parts, read_sealed_json, read_tensors, tensor_parts

# The version of the file format of a run; increased if a file of an older version could be misread.
FORMAT = 3
RECORD = "run.json"
HISTORY = "history.jsonl"
SUMMARY = "stage.json"
KEPT_CHECKPOINTS = 2  # the last one, and the one before in case the last one is damaged
_CHECKPOINT = re.compile(r"checkpoint-(\d+)\.safetensors")

History = list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedEpoch:
    """The content of the files of a finished epoch.

    entry: its line in the history. best_weights: by network, if it is the best epoch so far; otherwise empty.
    weights: by network, if the weights of the last epochs are kept; otherwise empty. kept: the numbers of these epochs.
    """

    entry: Mapping[str, Any]
    best_weights: Mapping[str, Mapping[str, Tensor]]
    weights: Mapping[str, Mapping[str, Tensor]]
    kept: range


class StageFolder:
    """The files of one stage. writes: False on all ranks except the first, which then write nothing.

    A thread writes checkpoints while training continues. `wait` returns when the last one is on disk, and raises the
    error if it could not be written.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self._history = hashlib.sha256()  # of the lines of the history so far
        self._epochs = 0  # the number of lines
        self._writer = BackgroundWriter()

    def save_weights(self, net: str, weights: Mapping[str, Tensor]) -> None:
        """Save the weights of a network."""
        self._write_weights(stage_weights(self.path, net), weights)

    def delete_epochs(self, kept: range) -> None:
        """Delete the weights of all epochs except for these."""
        if not self.writes:
            return
        for file in self.path.glob("epoch-*.safetensors"):
            if int(file.name.split("-")[1].split(".")[0]) not in kept:
                with self._explain_unwritable():
                    delete(file)

    def load_weights(self, net: str) -> dict[str, Tensor]:
        """Return the weights of a network. Raises RunFolderError if they are missing or damaged."""
        with self.reading(stage_weights(self.path, net)) as path:
            return read_tensors(path)[0]

    def save_checkpoint(self, step: int, state: Mapping[str, Any], ended: EndedEpoch | None = None) -> None:
        """Copy a state, and write it in a thread. Raises the error of the previous checkpoint if writing it failed.

        step: the number of batches trained so far, which orders checkpoints. ended: an epoch whose files are written
        first. Raises RunFolderError if the state has other values than tensors and plain values.
        """
        if not self.writes:
            return
        tensors, rest = flatten(state)

        def save() -> None:
            with self._explain_unwritable():
                if ended is not None:
                    self._save_epoch(ended)
                # The checkpoint is written last: a run that is killed before resumes from the previous one.
                facts = {"format": FORMAT, "history": self._history_facts(), "state": rest}
                write(self._path_to(f"checkpoint-{step}.safetensors"), *tensor_parts(tensors, facts))
                self._delete_checkpoints(kept=KEPT_CHECKPOINTS)
                if ended is not None:
                    self.delete_epochs(ended.kept)

        self._writer.start(save)

    def wait(self) -> None:
        """Wait until the last checkpoint is written. Raises RunFolderError if writing it failed."""
        self._writer.wait()

    def wait_or_warn(self) -> None:
        """Wait for the last checkpoint of a run that ends early, and warn if writing it failed."""
        try:
            self.wait()
        except RunFolderError as error:
            warnings.warn(f"the last checkpoint was not written: {error}", stacklevel=2)

    def load_checkpoint(self) -> tuple[dict[str, Any], History, str | None] | None:
        """Return the last intact checkpoint, its history, and a notice if a later one is damaged; or None.

        Raises RunFolderError if all checkpoints are damaged.
        """
        wait_for_all()  # an earlier run in this process, which two signals ended, may still be writing
        damaged: list[str] = []
        files = self._checkpoints()
        for file in files:
            try:
                with self.reading(file):
                    tensors, facts = read_tensors(file)
                    require_format(facts, file)
                    state = unflatten(tensors, facts["state"])
            except RunFolderError as error:
                if file is files[-1]:
                    raise
                damaged.append(f"{file.name} is damaged ({first_line(error.__cause__ or error)})")
                continue
            notice = f"{' and '.join(damaged)}, so the run resumes from {file.name}" if damaged else None
            return state, self._load_history(facts["history"]), notice
        if self.writes:  # the run was killed before its first checkpoint
            with self._explain_unwritable():
                delete(self.path / HISTORY)
            self.delete_epochs(range(0))
        return None

    def load_finished(self) -> tuple[dict[str, Any], History]:
        """Return the summary and the history of a finished stage. Raises RunFolderError if they are damaged."""
        with self.reading(self.path / SUMMARY) as path:
            summary = read_sealed_json(path)
            require_format(summary, path)
            history = self._load_history(summary["history"])
        self._delete_checkpoints()  # left if the run was killed before it deleted them
        return summary, history

    def save_batch(self, batch: Batch) -> Path:
        """Save the tensors of a batch for inspection, as a dict for torch.load, and return the file."""
        path = self.path / "not-finite-batch.pt"
        if self.writes:
            tensors = {"inputs": list(nested_tensors(batch.inputs)), "labels": batch.labels, "ids": batch.ids}
            buffer = io.BytesIO()
            torch.save(tensors, buffer)
            self._write(path, buffer.getvalue())
        return path

    def save_predictions(self, net: str, split: str, predictions: Predictions) -> None:
        """Save the predictions for a split: labels, outputs and classes, and ids and groups if the data has them."""
        if not self.writes:
            return
        arrays = {"labels": predictions.labels, "outputs": predictions.outputs}
        if predictions.ids is not None:
            arrays["ids"] = predictions.ids
        if predictions.groups is not None:
            arrays["groups"] = predictions.groups
        arrays |= {REDUCED + name: values for name, values in predictions.reduced.items()}
        tensors = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()}
        facts = {"format": FORMAT, "classes": predictions.classes, "per_position": predictions.per_position}
        self._write(self.predictions(net, split), *tensor_parts(tensors, facts))

    def load_predictions(self, net: str, split: str) -> Predictions:
        """Return the predictions for a split. Raises RunFolderError if they are missing or damaged."""
        return read_predictions(self.predictions(net, split))

    def predictions(self, net: str, split: str) -> Path:
        """Return the file of the predictions for a split."""
        return self.path / f"predictions-{net}-{split}.safetensors"

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Mark the stage as finished, and delete its checkpoints."""
        if not self.writes:
            return
        self.wait()
        content = {"format": FORMAT, "history": self._history_facts(), **summary}
        self._write(self.path / SUMMARY, *json_parts(content))
        self._delete_checkpoints()

    @property
    def finished(self) -> bool:
        """Whether the stage is finished."""
        return exists(self.path / SUMMARY)

    @contextmanager
    def reading(self, path: Path) -> Iterator[Path]:
        """Raise RunFolderError for any error caused by a missing, damaged or foreign file of this stage."""
        try:
            yield path
        except RunFolderError:
            raise
        except Exception as error:  # damaged bytes cause many kinds of errors
            reason = "there is no such file" if isinstance(error, FileNotFoundError) else first_line(error)
            raise RunFolderError(
                f"{path} is missing or damaged, so the run cannot be resumed ({reason}); delete the folder {self.path} "
                "to train this stage again, or choose another folder (--out FOLDER, or out=FOLDER)"
            ) from error

    def _save_epoch(self, ended: EndedEpoch) -> None:
        for net, weights in ended.best_weights.items():
            self.save_weights(net, weights)
        for net, weights in ended.weights.items():
            suffix = f"-{net}" if len(ended.weights) > 1 else ""
            self._write_weights(self.path / f"epoch-{ended.entry['epoch']}{suffix}.safetensors", weights)
        line = (to_json(ended.entry) + "\n").encode()  # a value that is not finite becomes null
        append(self._path_to(HISTORY), line)
        self._history.update(line)
        self._epochs += 1

    def _load_history(self, facts: Mapping[str, Any]) -> History:
        """Return the lines of the history up to a checkpoint, with NaN for null, and delete later lines.

        Raises RunFolderError if they are missing or damaged.
        """
        epochs = facts["epochs"]
        with self.reading(self.path / HISTORY) as path:
            # If the run was killed in its first epoch, there may be no file yet.
            content = read_file(path) if epochs or exists(path) else b""
            lines = content.splitlines(keepends=True)[:epochs]
            kept = b"".join(lines)
            if hashlib.sha256(kept).hexdigest() != facts["sha256"]:
                raise ValueError("its checksum does not match its content: it is damaged or was changed")
            history = [nulls_to_nan(parse_json(line)) for line in lines]
        if kept != content and self.writes:
            self._write(path, kept)
        self._history, self._epochs = hashlib.sha256(kept), epochs
        return history

    def _history_facts(self) -> dict[str, Any]:
        return {"epochs": self._epochs, "sha256": self._history.hexdigest()}

    def _checkpoints(self) -> list[Path]:
        """Return the checkpoint files, the last one first."""
        # Not `glob`, which from Python 3.13 on finds nothing in a folder that cannot be read.
        files = self.path.iterdir() if exists(self.path) else ()
        steps = {file: match[1] for file in files if (match := _CHECKPOINT.fullmatch(file.name))}
        return sorted(steps, key=lambda file: int(steps[file]), reverse=True)

    def _delete_checkpoints(self, *, kept: int = 0) -> None:
        """Delete all checkpoints except the last ones."""
        for file in self._checkpoints()[kept:] if self.writes else ():
            with self._explain_unwritable():
                delete(file)

    def _write_weights(self, path: Path, weights: Mapping[str, Tensor]) -> None:
        if self.writes:
            # Copies, because safetensors does not support tensors that share memory.
            contiguous = {key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}
            self._write(path, *tensor_parts(contiguous, {"format": FORMAT}))

    def _write(self, path: Path, *content: Content) -> None:
        with self._explain_unwritable():
            write(self._path_to(path.name), *content)

    def _path_to(self, name: str) -> Path:
        """Return the path of a file to write. Raises RunFolderError if the run folder no longer exists."""
        if not is_file(self.path.parent / RECORD):  # otherwise parts of the folder would be created again
            raise RunFolderError(
                f"the run folder {self.path.parent} no longer exists: it was deleted or renamed while the run was "
                "writing to it; if it was renamed, resume the run in the new folder"
            )
        self.path.mkdir(exist_ok=True)
        return self.path / name

    @contextmanager
    def _explain_unwritable(self) -> Iterator[None]:
        """Raise RunFolderError if the disk is full or the folder can no longer be written to."""
        try:
            yield
        except OSError as error:
            raise RunFolderError(
                f"the run folder {self.path.parent} cannot be written: {first_line(error)}; its files are intact: "
                "free disk space or restore the permission, and resume the run (--resume, or resume=True)"
            ) from error


def require_format(content: Mapping[str, Any], path: Path) -> None:
    """Raise RunFolderError if a file of a run has another format than this version of kdkit reads."""
    version = content.get("format", 1)  # files of the first format do not state it
    if version != FORMAT:
        raise RunFolderError(
            f"{path} has format {str(version)[:40]}, but this version of kdkit reads format {FORMAT}; start the run "
            "again in another folder (--out FOLDER, or out=FOLDER)"
        )
