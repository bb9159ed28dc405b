"""The folder of a stage: weights, checkpoints, history and predictions. Each file is written whole or not at all."""

import io
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdkit.data.batch import Batch, nested_tensors
from kdkit.engine.storage.background import BackgroundWriter, wait_for_all
from kdkit.engine.storage.history import HISTORY, History, HistoryFile
from kdkit.engine.storage.nested_state import flatten, unflatten
from kdkit.engine.storage.predictions import predictions_file, predictions_parts
from kdkit.engine.storage.run_files import FORMAT, RunFiles, require_format
from kdkit.errors import RunFolderError, first_line
from kdkit.metrics.base import Predictions
from kdkit.nets.weights import stage_weights
from kdkit.utils.files import exists
from kdkit.utils.sealed import explain_unreadable_file, json_parts, read_sealed_json, read_tensors, tensor_parts

SUMMARY = "stage.json"
KEPT_CHECKPOINTS = 2  # the last one, and the one before in case the last one is damaged
_CHECKPOINT = re.compile(r"checkpoint-(\d+)\.safetensors")


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
        self._files = RunFiles(path.parent, writes)
        self._history = HistoryFile(path / HISTORY, self._files)
        self._writer = BackgroundWriter()

    @property
    def finished(self) -> bool:
        """Whether the stage is finished."""
        return exists(self.path / SUMMARY)

    def save_checkpoint(
        self, step: int, content: Callable[[], Mapping[str, Any]], ended: EndedEpoch | None = None
    ) -> None:
        """Copy the state of a stage, and write it in a thread. Raises the error of the previous checkpoint.

        step: the number of batches trained so far, which orders checkpoints. content: returns the state; it is called
        on all ranks. ended: an epoch whose files are written first.
        Raises RunFolderError if the state has other values than tensors and plain values.
        """
        state = content()
        if not self._files.writes:
            return
        tensors, rest = flatten(state)

        def save() -> None:
            if ended is not None:
                self._save_epoch(ended)
            # The checkpoint is written last: a run that is killed before resumes from the previous one.
            facts = {"format": FORMAT, "history": self._history.facts, "state": rest}
            self._files.write(self.path / f"checkpoint-{step}.safetensors", *tensor_parts(tensors, facts))
            self._delete_checkpoints(kept=KEPT_CHECKPOINTS, last=step)
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
        self._history.delete()  # the run was killed before its first checkpoint
        self.delete_epochs(range(0))
        return None

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Mark the stage as finished, and delete its checkpoints."""
        if not self._files.writes:
            return
        self.wait()
        content = {"format": FORMAT, "history": self._history.facts, **summary}
        self._files.write(self.path / SUMMARY, *json_parts(content))
        self._delete_checkpoints()

    def load_finished(self) -> tuple[dict[str, Any], History]:
        """Return the summary and the history of a finished stage. Raises RunFolderError if they are damaged."""
        path = self.path / SUMMARY
        with self.reading(path):
            summary = read_sealed_json(path)
            require_format(summary, path)
            history = self._load_history(summary["history"])
        self._delete_checkpoints()  # left if the run was killed before it deleted them
        return summary, history

    def save_weights(self, net: str, weights: Mapping[str, Tensor]) -> None:
        """Save the weights of a network."""
        self._write_weights(stage_weights(self.path, net), weights)

    def load_weights(self, net: str) -> dict[str, Tensor]:
        """Return the weights of a network. Raises RunFolderError if they are missing or damaged."""
        path = stage_weights(self.path, net)
        with self.reading(path):
            return read_tensors(path)[0]

    def delete_epochs(self, kept: range) -> None:
        """Delete the weights of all epochs except for these."""
        for file in self.path.glob("epoch-*.safetensors"):
            if int(file.name.split("-")[1].split(".")[0]) not in kept:
                self._files.delete(file)

    def save_predictions(self, net: str, split: str, predictions: Predictions) -> None:
        """Save the predictions of a network for a split."""
        if self._files.writes:
            self._files.write(predictions_file(self.path, net, split), *predictions_parts(predictions))

    def save_batch(self, batch: Batch) -> Path | None:
        """Save the tensors of a batch for inspection, as a dict for torch.load, and return the file."""
        path = self.path / "not-finite-batch.pt"
        tensors = {"inputs": list(nested_tensors(batch.inputs)), "labels": batch.labels, "ids": batch.ids}
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        self._files.write(path, buffer.getvalue())
        return path

    def reading(self, path: Path) -> AbstractContextManager[None]:
        """Return a context that raises RunFolderError for any error that this file causes."""
        advice = "to train this stage again, or choose another folder (--out FOLDER, or out=FOLDER)"
        return explain_unreadable_file(path, f"delete the folder {self.path} {advice}")

    def _save_epoch(self, ended: EndedEpoch) -> None:
        for net, weights in ended.best_weights.items():
            self.save_weights(net, weights)
        for net, weights in ended.weights.items():
            suffix = f"-{net}" if len(ended.weights) > 1 else ""
            self._write_weights(self.path / f"epoch-{ended.entry['epoch']}{suffix}.safetensors", weights)
        self._history.append(ended.entry)

    def _load_history(self, facts: Mapping[str, Any]) -> History:
        with self.reading(self._history.path):
            return self._history.load(facts)

    def _checkpoints(self) -> list[Path]:
        """Return the checkpoint files, the last one first."""
        # Not `glob`, which from Python 3.13 on finds nothing in a folder that cannot be read.
        files = self.path.iterdir() if exists(self.path) else ()
        steps = {file: match[1] for file in files if (match := _CHECKPOINT.fullmatch(file.name))}
        return sorted(steps, key=lambda file: int(steps[file]), reverse=True)

    def _delete_checkpoints(self, *, kept: int = 0, last: int | None = None) -> None:
        """Delete all checkpoints except the last ones. last: the step of the last one; None for any.

        Later ones are older: they are damaged, or a run was forced to resume with fewer batches per epoch.
        """
        files = self._checkpoints()
        first = 0 if last is None else files.index(self.path / f"checkpoint-{last}.safetensors")
        for file in (*files[:first], *files[first + kept :]):
            self._files.delete(file)

    def _write_weights(self, path: Path, weights: Mapping[str, Tensor]) -> None:
        if self._files.writes:
            # Copies, because safetensors does not support tensors that share memory.
            contiguous = {key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}
            self._files.write(path, *tensor_parts(contiguous, {"format": FORMAT}))


class NoStageFolder(StageFolder):
    """Takes the place of the folder in a run without one: nothing is saved, and there is nothing to load."""

    def __init__(self) -> None:
        super().__init__(Path(), writes=False)

    @property
    def finished(self) -> bool:
        """False."""
        return False

    def save_checkpoint(
        self, step: int, content: Callable[[], Mapping[str, Any]], ended: EndedEpoch | None = None
    ) -> None:
        """Do nothing, and leave the state uncollected."""

    def load_checkpoint(self) -> None:
        """Return None."""

    def save_batch(self, batch: Batch) -> None:
        """Return None."""
