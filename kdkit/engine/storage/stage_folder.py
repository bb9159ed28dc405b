"""What a stage leaves on disk: weights, state, history and predictions, each written whole or not at all."""

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from kdkit.errors import RunFolderError, first_line
from kdkit.metrics import Predictions
from kdkit.utils.files import nulls_to_nan, to_json, write

HISTORY = "history.jsonl"
STATE = ("work", "history", "kept")


@dataclass(frozen=True, slots=True)
class StageFolder:
    """The files of one stage: weights, the state to go on from, history, and what the nets said.

    writes: whether anything is kept; of several processes the first one writes.
    """

    path: Path
    writes: bool = True

    def save_weights(self, net: str, weights: Mapping[str, Tensor]) -> None:
        """Keep a net's weights, by its name where a stage trains several."""
        if not self.writes:
            return
        contiguous = {key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}
        write(self._weights(net), save(contiguous))

    def load_weights(self, net: str) -> dict[str, Tensor]:
        """Return a net's kept weights. Raises RunFolderError where they are missing or damaged."""
        with self.reading(self._weights(net)) as path:
            loaded: dict[str, Tensor] = load_file(path)
        return loaded

    def save_state(self, state: dict[str, Any]) -> None:
        """Keep what is needed to go on after this epoch."""
        if not self.writes:
            return
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write(self.state, buffer.getvalue())

    def load_state(self) -> dict[str, Any] | None:
        """Return the state to go on from, if there is one. Raises RunFolderError where it is damaged or foreign."""
        if not self.state.exists():
            return None
        with self.reading(self.state) as path:
            state: dict[str, Any] = torch.load(path, "cpu", weights_only=True)
            lacking = [key for key in STATE if key not in state]
            if lacking:
                raise ValueError(f"it holds no {lacking[0]!r}")
        return state

    def save_history(self, epochs: list[dict[str, Any]]) -> None:
        """Keep a line of JSON per epoch; a figure that is not finite is null."""
        if self.writes:
            write(self.path / HISTORY, "".join(to_json(epoch) + "\n" for epoch in epochs))

    def load_history(self) -> list[dict[str, Any]]:
        """Return what was kept of the epochs, NaN for null. Raises RunFolderError where it is missing or damaged."""
        with self.reading(self.path / HISTORY) as path:
            epochs = [nulls_to_nan(json.loads(line)) for line in path.read_text().splitlines()]
            if not all(isinstance(epoch, dict) for epoch in epochs):
                raise ValueError("each of its lines is a JSON object")
        return epochs

    def save_predictions(self, net: str, split: str, predictions: Predictions) -> None:
        """Keep what a net said about a split: labels, outputs, classes, and ids and groups where the data has them."""
        if not self.writes:
            return
        arrays = {"labels": predictions.labels, "outputs": predictions.outputs}
        if predictions.ids is not None:
            arrays["ids"] = predictions.ids
        if predictions.groups is not None:
            arrays["groups"] = predictions.groups
        tensors = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}
        classes = {"classes": json.dumps(predictions.classes)}
        write(self._predictions(net, split), save(tensors, metadata=classes))

    def load_predictions(self, net: str, split: str) -> Predictions:
        """Return what a net said about a split. Raises RunFolderError where it is missing or damaged."""
        with self.reading(self._predictions(net, split)) as path, safe_open(path, "numpy") as file:
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it is no mapping
            return Predictions(classes=tuple(json.loads(file.metadata()["classes"])), **arrays)

    def finish(self, kept: Mapping[str, Any]) -> None:
        """Mark the stage as done, with the epoch that was kept; its state is no longer needed."""
        if not self.writes:
            return
        write(self.path / "stage.json", to_json(kept, indent=2))
        self.state.unlink(missing_ok=True)

    @property
    def finished(self) -> bool:
        """Whether the stage is done."""
        return (self.path / "stage.json").exists()

    @contextmanager
    def reading(self, path: Path) -> Iterator[Path]:
        """Turn whatever a damaged or foreign file of this stage leads to into a RunFolderError that says what to do."""
        try:
            yield path
        except RunFolderError:
            raise
        except Exception as error:  # torch raises whatever a stranger's bytes lead it to: KeyError, EOFError, ...
            reason = "there is no such file" if isinstance(error, FileNotFoundError) else first_line(error)
            raise RunFolderError(
                f"{path} is missing or damaged, so the run cannot be gone on with ({reason}); delete the folder "
                f"{self.path} to train that stage again, or choose another folder (--out FOLDER, or out=FOLDER)"
            ) from error

    @property
    def state(self) -> Path:
        """The file of the state to go on from."""
        return self.path / "state.pt"

    def _predictions(self, net: str, split: str) -> Path:
        return self.path / f"predictions-{net}-{split}.safetensors"

    def _weights(self, net: str) -> Path:
        single = self.path.name.split("-", 1)[-1] == net
        return self.path / ("weights.safetensors" if single else f"weights-{net}.safetensors")
