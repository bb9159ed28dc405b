"""Count and name the records that were found but not used, by reason."""

import os
from collections.abc import Sequence
from copy import deepcopy
from enum import StrEnum
from pathlib import Path

from kdkit.utils.printable import printable
from kdkit_ecg.utils.messages import EXPORT, NOT_LISTED, clipped, first_names, without_file
from kdkit_ecg.utils.record_files import RecordFiles, counted_kinds, without_suffix


class ExclusionReason(StrEnum):
    """Why a record is excluded, in the order in which the reasons are checked."""

    NO_HEADER = "no header next to the signal"
    HEADER = "unreadable header"
    NO_SIGNAL = "no signal file"
    LEADS = "absent leads"
    UNITS = "normalised units, not mV (normalised_units=True includes them)"
    CODES = "no scored code"
    NO_ROW = "no row in the table of labels"
    NO_LABEL = "no label in the table of labels"
    SOME_LABELS = "an empty cell among its labels (unknown=float('nan') keeps the others)"
    NAME = "the name of another record"
    NO_FOLD = "no fold in the folds file"
    RATE = "a rate that the band-pass or the resampling cannot handle"
    SIGNAL = "unreadable signal"
    CHECKSUM = "samples that do not match the first samples and checksums in the header"
    FLAT = "no lead with a signal"
    DUPLICATE = "the signal of another record"


class ExcludedRecords:
    """The excluded records of some folders, by reason."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        self.records: dict[ExclusionReason, list[str]] = {}
        self.causes: dict[ExclusionReason, str] = {}  # why the first record of a reason cannot be read
        self.unread: list[Path] = []  # ECG files in a format that is not read
        self.not_listed: list[str] = []  # folders that cannot be read

    def add(self, reason: ExclusionReason, path: Path, detail: str = "", *, cause: Exception | None = None) -> None:
        """Exclude the record with this .hea file. detail: text after its name. cause: why it cannot be read."""
        name = without_suffix(self._relative(path)).as_posix()
        if cause is not None and reason not in self.causes:
            # Without the folder, so that the summary is the same wherever the folder is.
            text = without_file(cause).replace(f"{path.parent}{os.sep}", "")
            self.causes[reason] = f"{name}: {clipped(text, 300)}"
        self.records.setdefault(reason, []).append(f"{name} ({detail})" if detail else name)

    def add_files(self, files: RecordFiles) -> None:
        """Add the files of a folder in formats that are not read, and the folders that cannot be listed."""
        self.unread += files.unread
        self.not_listed += [self._relative(path).as_posix() for path in files.not_listed]

    def copy(self) -> "ExcludedRecords":
        """Return a copy; adding records to it does not change this one."""
        return deepcopy(self)

    def summary(self, used: int) -> str:
        """Return how many records were read, and one line per reason with a count and the first names."""
        total = used + sum(map(len, self.records.values()))
        lines = [f"{used} of {total} records read"]
        for reason in ExclusionReason:
            names = self.records.get(reason, [])
            if names:
                lines.append(f"  {len(names)} excluded, {reason}: {first_names(names)}")
            if reason in self.causes:
                lines.append(f"    {printable(self.causes[reason])}")
        if self.unread:
            lines.append(f"  files of formats that are not read: {counted_kinds(self.unread)}; {EXPORT}")
        if self.not_listed:
            lines.append(f"  {len(self.not_listed)} {NOT_LISTED}: {first_names(self.not_listed)}")
        return "\n".join(lines)

    def _relative(self, path: Path) -> Path:
        # Relative to its root, so that the summary is the same wherever the folders are.
        return path.relative_to(next((folder for folder in self.folders if path.is_relative_to(folder)), path.parent))
