"""What a run leaves on disk: plain files, each written whole or not at all."""

import io
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from kdkit.errors import RunFolderError
from kdkit.scores import Predictions, Scored

RUN = "run.json"


def write(path: Path, content: bytes | str) -> None:
    """Write a file through a temporary one beside it, so that it is never seen half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@dataclass(frozen=True, slots=True)
class StageFolder:
    """The files of one stage: weights, the state to go on from, history, and what the nets said."""

    path: Path

    def save_weights(self, net: str, weights: Mapping[str, Tensor]) -> None:
        """Keep a net's weights, by its name where a stage trains several."""
        contiguous = {key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}
        write(self._weights(net), save(contiguous))

    def load_weights(self, net: str) -> dict[str, Tensor]:
        """Return a net's kept weights."""
        loaded: dict[str, Tensor] = load_file(self._weights(net))
        return loaded

    def save_state(self, state: dict[str, Any]) -> None:
        """Keep what is needed to go on after this epoch."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write(self.path / "state.pt", buffer.getvalue())

    def load_state(self) -> dict[str, Any] | None:
        """Return the state to go on from, if there is one."""
        path = self.path / "state.pt"
        if not path.exists():
            return None
        state: dict[str, Any] = torch.load(path, "cpu", weights_only=True)
        return state

    def save_history(self, epochs: list[dict[str, Any]]) -> None:
        """Keep a line of JSON per epoch."""
        write(self.path / "history.jsonl", "".join(json.dumps(epoch) + "\n" for epoch in epochs))

    def load_history(self) -> list[dict[str, Any]]:
        """Return what was kept of the epochs."""
        return [json.loads(line) for line in (self.path / "history.jsonl").read_text().splitlines()]

    def save_predictions(self, net: str, split: str, predictions: Predictions) -> None:
        """Keep what a net said about a split: ids, labels, outputs."""
        ids = predictions.ids if predictions.ids is not None else np.arange(len(predictions.labels))
        arrays = {"ids": ids, "labels": predictions.labels, "outputs": predictions.outputs}
        tensors = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}
        write(self.path / f"predictions-{net}-{split}.safetensors", save(tensors))

    def finish(self, kept: Mapping[str, Any]) -> None:
        """Mark the stage as done, with the epoch that was kept; its state is no longer needed."""
        write(self.path / "stage.json", json.dumps(kept, indent=2))
        (self.path / "state.pt").unlink(missing_ok=True)

    @property
    def finished(self) -> bool:
        """Whether the stage is done."""
        return (self.path / "stage.json").exists()

    def _weights(self, net: str) -> Path:
        single = self.path.name.split("-", 1)[-1] == net
        return self.path / ("weights.safetensors" if single else f"weights-{net}.safetensors")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @classmethod
    def create(cls, path: Path, run: Mapping[str, Any], recipe: Path | None) -> "RunFolder":
        """Make a new run folder. Raises RunFolderError where something is already there."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            if (path / RUN).exists():
                raise RunFolderError(f"{path} already holds a run; go on with it (--resume) or choose another folder")
            raise RunFolderError(f"{path} exists and is not a run folder; choose another, or one that does not exist")
        try:
            if recipe is not None:
                write(path / "recipe.py", recipe.read_bytes())
            write(path / RUN, json.dumps(run, indent=2, default=str))
        except OSError as error:
            raise RunFolderError(f"the run folder {path} cannot be written: {error}") from error
        return cls(path)

    @classmethod
    def reopen(cls, path: Path, run: Mapping[str, Any]) -> "RunFolder":
        """Open the folder of a run to go on with it. Raises RunFolderError where it is another run's."""
        if not (path / RUN).is_file():
            raise RunFolderError(f"{path} holds no run to go on with: there is no {RUN} in it")
        try:
            before = json.loads((path / RUN).read_text())
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{path / RUN} cannot be read, so the run cannot be gone on with: {error}") from error
        now = json.loads(json.dumps(run, default=str))
        for key in ("recipe_sha256", "options", "seed", "precision", "data", "stages"):
            if before.get(key) != now.get(key):
                raise RunFolderError(
                    f"{path} holds a run that differs in its {key.replace('_', ' ')}: it had {before.get(key)!r}, "
                    f"this one has {now.get(key)!r}; choose another folder, or call it as before"
                )
        return cls(path)

    def stage(self, index: int, name: str) -> StageFolder:
        """Return the folder of a stage, counted from 1."""
        return StageFolder(self.path / f"{index + 1}-{name}")

    def save_scores(self, reported_on: str, scores: Mapping[str, Mapping[str, Scored]]) -> None:
        """Keep the scores of every net, and the split they were reported on."""
        table = {net: {name: asdict(scored) for name, scored in each.items()} for net, each in scores.items()}
        write(self.path / "scores.json", json.dumps({"reported_on": reported_on, "scores": table}, indent=2))


def new_path(name: str) -> Path:
    """Return where a run goes that says nothing of it: runs/<name>-<time>, not there yet."""
    stem = f"{name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    path, count = Path("runs") / stem, 1
    while path.exists():
        count += 1
        path = Path("runs") / f"{stem}-{count}"
    return path
