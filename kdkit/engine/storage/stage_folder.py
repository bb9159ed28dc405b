"""The folder of a stage: weights, checkpoint, history and predictions. Each file is written whole or not at all."""

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from kdkit.data.batch import Batch, nested_tensors
from kdkit.engine.storage.predictions import read_predictions
from kdkit.errors import RunFolderError, first_line
from kdkit.metrics.base import Predictions
from kdkit.nets.weight_files import stage_weights
from kdkit.utils.files import nulls_to_nan, to_json, write
from kdkit.utils.read_json import read_json_lines

# The version of the files of a run; raised when a file of an older version could be misread.
FORMAT = 2
HISTORY = "history.jsonl"
_CHECKPOINT = ("train_state", "history", "best")


@dataclass(frozen=True, slots=True)
class StageFolder:
    """The files of one stage. writes: False on all ranks but the first one, which then write nothing."""

    path: Path
    writes: bool = True

    def save_weights(self, net: str, weights: Mapping[str, Tensor]) -> None:
        """Save the weights of a network."""
        self._write_weights(stage_weights(self.path, net), weights)

    def save_epoch(self, epoch: int, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Save the weights of an epoch by network, in addition to those of the best epoch."""
        for net, tensors in weights.items():
            suffix = f"-{net}" if len(weights) > 1 else ""
            self._write_weights(self.path / f"epoch-{epoch}{suffix}.safetensors", tensors)

    def delete_epochs(self, kept: range) -> None:
        """Delete the weights of all epochs except for these."""
        if not self.writes:
            return
        for file in self.path.glob("epoch-*.safetensors"):
            if int(file.name.split("-")[1].split(".")[0]) not in kept:
                file.unlink()

    def load_weights(self, net: str) -> dict[str, Tensor]:
        """Return the weights of a network. Raises RunFolderError if they are missing or damaged."""
        with self.reading(stage_weights(self.path, net)) as path:
            weights: dict[str, Tensor] = load_file(path)
        return weights

    def save_state(self, state: dict[str, Any]) -> None:
        """Save the checkpoint that training resumes from."""
        if not self.writes:
            return
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, **state}, buffer)
        write(self.state, buffer.getvalue())

    def save_batch(self, batch: Batch) -> Path:
        """Save the tensors of a batch for a look, as a dict that torch.load reads, and return the file."""
        path = self.path / "not-finite-batch.pt"
        if self.writes:
            tensors = {"inputs": list(nested_tensors(batch.inputs)), "labels": batch.labels, "ids": batch.ids}
            buffer = io.BytesIO()
            torch.save(tensors, buffer)
            write(path, buffer.getvalue())
        return path

    def load_state(self) -> dict[str, Any] | None:
        """Return the checkpoint, or None. Raises RunFolderError if it is damaged or has another format."""
        if not self.state.exists():
            return None
        with self.reading(self.state) as path:
            # Never unpickle code: a run folder may come from someone else.
            state: dict[str, Any] = torch.load(path, "cpu", weights_only=True)
            require_format(state, path)
            missing = [key for key in _CHECKPOINT if key not in state]
            if missing:
                raise ValueError(f"it has no {missing[0]!r}")
        return state

    def save_history(self, epochs: list[dict[str, Any]]) -> None:
        """Save a line of JSON per epoch; a value that is not finite becomes null."""
        if self.writes:
            write(self.path / HISTORY, "".join(to_json(epoch) + "\n" for epoch in epochs))

    def load_history(self) -> list[dict[str, Any]]:
        """Return the history, with NaN for null. Raises RunFolderError if it is missing or damaged."""
        with self.reading(self.path / HISTORY) as path:
            epochs = [nulls_to_nan(line) for line in read_json_lines(path)]
            if not all(isinstance(epoch, dict) for epoch in epochs):
                raise ValueError("each of its lines must be a JSON object")
        return epochs

    def save_predictions(self, net: str, split: str, predictions: Predictions) -> None:
        """Save the predictions for a split: labels, outputs, classes, and ids and groups if the data has them."""
        if not self.writes:
            return
        arrays = {"labels": predictions.labels, "outputs": predictions.outputs}
        if predictions.ids is not None:
            arrays["ids"] = predictions.ids
        if predictions.groups is not None:
            arrays["groups"] = predictions.groups
        tensors = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()}
        metadata = {"classes": json.dumps(predictions.classes)}
        if predictions.per_position:
            metadata["per_position"] = "true"
        write(self.predictions(net, split), save(tensors, metadata=metadata))

    def load_predictions(self, net: str, split: str) -> Predictions:
        """Return the predictions for a split. Raises RunFolderError if they are missing or damaged."""
        return read_predictions(self.predictions(net, split))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Mark the stage as finished, and delete its checkpoint, which is no longer needed."""
        if not self.writes:
            return
        write(self.path / "stage.json", to_json(summary, indent=2))
        self.state.unlink(missing_ok=True)

    @property
    def finished(self) -> bool:
        """Whether the stage is finished."""
        return (self.path / "stage.json").exists()

    @property
    def state(self) -> Path:
        """The file of the checkpoint."""
        return self.path / "state.pt"

    @contextmanager
    def reading(self, path: Path) -> Iterator[Path]:
        """Raise RunFolderError for any error that a missing, damaged or foreign file of this stage causes."""
        try:
            yield path
        except RunFolderError:
            raise
        except Exception as error:  # torch raises many kinds for damaged bytes: KeyError, EOFError, ...
            reason = "there is no such file" if isinstance(error, FileNotFoundError) else first_line(error)
            raise RunFolderError(
                f"{path} is missing or damaged, so the run cannot be resumed ({reason}); delete the folder {self.path} "
                "to train that stage again, or choose another folder (--out FOLDER, or out=FOLDER)"
            ) from error

    def _write_weights(self, path: Path, weights: Mapping[str, Tensor]) -> None:
        if self.writes:
            contiguous = {key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}
            write(path, save(contiguous))

    def predictions(self, net: str, split: str) -> Path:
        """Return the file of the predictions for a split."""
        return self.path / f"predictions-{net}-{split}.safetensors"


def require_format(content: Mapping[str, Any], path: Path) -> None:
    """Raise RunFolderError if a file of a run was written in another format than this version of kdkit reads."""
    version = content.get("format", 1)  # files of the first format do not name it
    if version != FORMAT:
        raise RunFolderError(
            f"{path} has format {str(version)[:40]}, and this version of kdkit reads format {FORMAT}; start the run "
            "again in another folder (--out FOLDER, or out=FOLDER)"
        )
