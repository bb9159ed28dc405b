"""The history of a stage, `history.jsonl`: a line for each finished epoch."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdkit.engine.storage.run_files import RunFiles
from kdkit.utils.files import exists, nulls_to_nan, read_file, to_json
from kdkit.utils.read_json import parse_json

HISTORY = "history.jsonl"

# The keys of an entry. Another one is the name of the monitored metric.
KEYS = frozenset({"epoch", "terms", "best", "seconds", "gradients", "peak_memory_bytes", "stopped_by"})

History = list[dict[str, Any]]


class HistoryFile:
    """The history in the folder of a stage.

    Checkpoints and the summary hold its `facts`: the number of its lines, and their SHA-256. The file may have more
    lines than a checkpoint, because a run may be killed between the two.
    """

    def __init__(self, path: Path, files: RunFiles) -> None:
        self.path, self._files = path, files
        self._digest = hashlib.sha256()
        self._epochs = 0

    @property
    def facts(self) -> dict[str, Any]:
        """The number of lines so far, and their digest."""
        return {"epochs": self._epochs, "sha256": self._digest.hexdigest()}

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add the line of an epoch. A value that is not finite becomes null."""
        line = (to_json(entry) + "\n").encode()
        self._files.append(self.path, line)
        self._digest.update(line)
        self._epochs += 1

    def load(self, facts: Mapping[str, Any]) -> History:
        """Return the lines that these facts are about, with NaN for null, and delete later lines.

        Raises ValueError if they are damaged, and OSError if they are missing.
        """
        epochs = facts["epochs"]
        # If the run was killed in its first epoch, there may be no file yet.
        content = read_file(self.path) if epochs or exists(self.path) else b""
        lines = content.splitlines(keepends=True)[:epochs]
        kept = b"".join(lines)
        digest = hashlib.sha256(kept)
        if digest.hexdigest() != facts["sha256"]:
            raise ValueError("its checksum does not match its content: it is damaged or was changed")
        history = [nulls_to_nan(parse_json(line)) for line in lines]
        if kept != content:
            self._files.write(self.path, kept)
        self._digest, self._epochs = digest, epochs
        return history

    def delete(self) -> None:
        """Delete the file."""
        self._files.delete(self.path)
