"""What all files of a run share: their format, and how they are written."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdkit.errors import RunFolderError, first_line
from kdkit.utils.files import Content, append, delete, is_file, write

# The version of the file format of a run; increased if a file of an older version could be misread.
FORMAT = 3
RECORD = "run.json"


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Writes and deletes files in the folder of a run that has written its record.

    run: the folder. writes: False on all ranks except the first, which then write nothing.
    Raises RunFolderError if the disk is full, or the folder can no longer be written to, or no longer exists.
    """

    run: Path
    writes: bool

    def write(self, path: Path, *content: Content) -> None:
        """Write a file whole or not at all."""
        if self.writes:
            with self._explained():
                self._create_folder(path.parent)
                write(path, *content)

    def append(self, path: Path, content: Content) -> None:
        """Append to a file. After a power cut, part of the content may be missing."""
        if self.writes:
            with self._explained():
                self._create_folder(path.parent)
                append(path, content)

    def delete(self, path: Path) -> None:
        """Delete a file if it exists."""
        if self.writes:
            with self._explained():
                delete(path)

    def _create_folder(self, path: Path) -> None:
        """Create the folder of a stage if needed."""
        if not is_file(self.run / RECORD):  # otherwise parts of the folder would be created again
            raise RunFolderError(
                f"the run folder {self.run} no longer exists: it was deleted or renamed while the run was writing to "
                "it; if it was renamed, resume the run in the new folder"
            )
        path.mkdir(exist_ok=True)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunFolderError(
                f"the run folder {self.run} cannot be written: {first_line(error)}; its files are intact: free disk "
                "space or restore the permission, and resume the run (--resume, or resume=True)"
            ) from error


def require_format(content: Mapping[str, Any], path: Path) -> None:
    """Raise RunFolderError if a file of a run has another format than this version of kdkit reads."""
    version = content.get("format", 1)  # files of the first format do not state it
    if version != FORMAT:
        raise RunFolderError(
            f"{path} has format {str(version)[:40]}, but this version of kdkit reads format {FORMAT}; start the run "
            "again in another folder (--out FOLDER, or out=FOLDER)"
        )
