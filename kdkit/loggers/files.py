"""Log to a file of the run folder: CSV for tables, JSON lines for programs."""

import csv
import io
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdkit.errors import RunFolderError, first_line
from kdkit.loggers.base import Logger, Values, hyperparameters
from kdkit.plugins.events import RunStarted
from kdkit.utils.files import append, exists, read_file, to_json, write
from kdkit.utils.paths import user_path
from kdkit.utils.read_json import parse_json

Row = dict[str, Any]
_POSITION = ("step", "stage", "epoch")  # the first columns; the last two are empty at the end of a run


class _FileLogger(Logger):
    """A log of rows in one file. A row is on the disk before the checkpoint of its epoch.

    So a killed run has logged all epochs before the one at which it resumes. Rows of repeated epochs are replaced.
    """

    _name: str  # of the file in the run folder
    _file: Path

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else user_path(path).absolute()  # recipe() may change the folder
        self._rows: list[Row] = []

    @abstractmethod
    def _read(self, text: str) -> list[Row]:
        """Return the rows of a file, without an incomplete last row. Raises ValueError or csv.Error."""

    @abstractmethod
    def _rewrite(self) -> None:
        """Write all rows."""

    @abstractmethod
    def _add(self, row: Row) -> None:
        """Append the last row."""

    def prepare(self, run: RunStarted) -> None:
        """Raise RunFolderError if there is no folder for the file, or another run wrote it."""
        if self.path is None and run.folder is None:
            raise RunFolderError(
                f"a {type(self).__name__} writes to the run folder, but this run has none; pass out=FOLDER, or a path "
                "to the logger"
            )
        self._file = self.path or Path(run.folder or "", self._name)
        self._rows = []
        if not exists(self._file):
            return
        if not run.resumed:
            raise RunFolderError(f"{self._file} already exists, and the run would overwrite it; choose another path")
        try:
            self._rows = self._read(read_file(self._file).decode())
        except (OSError, ValueError, csv.Error) as error:
            raise RunFolderError(
                f"{self._file} cannot be read ({first_line(error)}), so the resumed run cannot continue it; delete or "
                "rename it"
            ) from error

    def start(self, run: RunStarted, step: int) -> None:
        """Write the rows of the epochs that are not repeated, without the metrics at the end of the run."""
        self._rows = [row for row in self._rows if row.get("stage")]
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._rewrite()

    def repeat(self, stage: str, epoch: int) -> None:
        """Remove the rows of a stage from this epoch on."""
        kept = [row for row in self._rows if row["stage"] != stage or int(row["epoch"]) < epoch]
        if len(kept) < len(self._rows):
            self._rows = kept
            self._rewrite()

    def log(self, step: int, values: Values, *, stage: str | None, epoch: int | None) -> None:
        """Append a row."""
        self._rows.append({"step": step, "stage": stage, "epoch": epoch, **values})
        self._add(self._rows[-1])

    def close(self, *, failed: bool) -> None:
        """Do nothing, because every row is on the disk."""


class CsvLogger(_FileLogger):
    """Write a table with a row for each epoch, and one for the metrics at the end: `log.csv` in the run folder.

    The columns are step, stage, epoch (from 0) and the names of values. A value that is missing or not a number is
    empty. A new column, such as at the start of a stage, is added to all rows.
    path: another file, which must not exist before the run.
    """

    _name = "log.csv"
    _columns: tuple[str, ...] = ()

    def _read(self, text: str) -> list[Row]:
        """Return the rows of a file. Raises ValueError or csv.Error if it is not such a table."""
        lines = csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
        columns = next(lines, [])
        if tuple(columns[:3]) != _POSITION:
            raise ValueError(f"its first columns are not {', '.join(_POSITION)}")
        # Values stay texts, as in the file.
        rows: list[Row] = [dict(zip(columns, line, strict=True)) for line in lines if len(line) == len(columns)]
        for row in rows:
            if row["stage"]:
                int(row["epoch"])  # raises ValueError
        return rows

    def _rewrite(self) -> None:
        # A dict as an ordered set.
        self._columns = tuple(dict.fromkeys([*_POSITION, *(name for row in self._rows for name in row)]))
        write(self._file, _csv([self._columns, *(self._line(row) for row in self._rows)]))

    def _add(self, row: Row) -> None:
        """Append a row, or write all rows if it has a new column."""
        if not {*row} <= {*self._columns}:
            self._rewrite()
        else:
            append(self._file, _csv([self._line(row)]).encode())

    def _line(self, row: Row) -> Iterable[str]:
        return map(_cell, map(row.get, self._columns))


class JsonlLogger(_FileLogger):
    """Write a JSON object per line for each epoch, and for the metrics at the end: `log.jsonl` in the run folder.

    The first line has the hyperparameters: `{"run": {...}}`. A line has step, stage, epoch (from 0) and the values by
    name, with null for a value that is not a number.
    path: another file, which must not exist before the run.
    """

    _name = "log.jsonl"
    _run: Mapping[str, Any] = {}

    def _read(self, text: str) -> list[Row]:
        """Return the rows of a file. Raises ValueError if a line is not a row."""
        lines = text.split("\n")[:-1]  # a line without its end is incomplete
        rows = [parse_json(line.encode()) for line in lines]
        for row in rows[1:]:
            if not isinstance(row, dict) or (row.get("stage") is not None and not isinstance(row.get("epoch"), int)):
                raise ValueError("a line is not an epoch of a run")
        return rows[1:]

    def start(self, run: RunStarted, step: int) -> None:
        """Write the hyperparameters, and the rows of the epochs that are not repeated."""
        self._run = hyperparameters(run)
        super().start(run, step)

    def _rewrite(self) -> None:
        write(self._file, "".join(f"{to_json(row)}\n" for row in ({"run": self._run}, *self._rows)))

    def _add(self, row: Row) -> None:
        append(self._file, f"{to_json(row)}\n".encode())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ""
    return "" if value is None else str(value)


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
