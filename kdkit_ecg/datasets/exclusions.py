"""Count and name the records that were found but not used, by reason."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from kdkit_ecg.leads import LEADS


class ExclusionReason(StrEnum):
    """Why a record is excluded, in the order in which the reasons are checked."""

    NO_HEADER = "no header next to the signal"
    HEADER = "unreadable header"
    NO_SIGNAL = "no signal file"
    LEADS = f"fewer than {len(LEADS)} leads"
    UNITS = "normalised units, not mV (normalised_units=True includes them)"
    CODES = "no scored code"
    NAME = "the name of another record"
    NO_FOLD = "no fold in the folds file"
    RATE = "a rate that the band-pass or the resampling cannot handle"
    SIGNAL = "unreadable signal"
    CHECKSUM = "samples that do not match the first samples and checksums in the header"
    DUPLICATE = "the signal of another record"


class ExcludedRecords:
    """The excluded records of some folders, by reason."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        self.records: dict[ExclusionReason, list[str]] = {}

    def add(self, reason: ExclusionReason, path: Path) -> None:
        """Exclude the record with this .hea file."""
        # Relative to its root, so that the summary is the same wherever the folders are.
        root = next((folder for folder in self.folders if path.is_relative_to(folder)), path.parent)
        self.records.setdefault(reason, []).append(path.relative_to(root).with_suffix("").as_posix())

    def copy(self) -> "ExcludedRecords":
        """Return a copy, to which records can be added without changing this one."""
        copied = ExcludedRecords(self.folders)
        copied.records = {reason: list(names) for reason, names in self.records.items()}
        return copied

    def summary(self, used: int) -> str:
        """Return how many records were read, and one line per reason with a count and the first names."""
        total = used + sum(map(len, self.records.values()))
        lines = [f"{used} of {total} records read"]
        for reason in ExclusionReason:
            names = self.records.get(reason, [])
            if names:
                lines.append(f"  {len(names)} excluded, {reason}: {first_names(names)}")
        return "\n".join(lines)


def first_names(names: Sequence[str]) -> str:
    """Return the first three names, followed by dots if there are more."""
    return ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])])
