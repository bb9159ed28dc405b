"""Count and name the records that were found and not taken, by reason."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from kdkit_ecg.leads import LEADS


class Reason(StrEnum):
    """Why a record is left out, in the order in which it is looked for."""

    BARE = "no header beside the signal"
    HEADER = "unreadable header"
    NO_SIGNAL = "no signal file"
    LEADS = f"fewer than {len(LEADS)} leads"
    UNITS = "normalised units, not mV (normalised_units=True takes them)"
    CODES = "no scored code"
    NAME = "the name of another record"
    FOLD = "no fold in the folds file"
    RATE = "a rate that the band-pass or the resampling cannot take"
    SIGNAL = "unreadable signal"
    TWIN = "the signal of another record"


class ExcludedRecords:
    """What was left out of some folders, by reason."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        self.records: dict[Reason, list[str]] = {}

    def add(self, reason: Reason, path: Path) -> None:
        """Leave the record with this .hea file out."""
        root = next((folder for folder in self.folders if path.is_relative_to(folder)), path.parent)
        self.records.setdefault(reason, []).append(path.relative_to(root).with_suffix("").as_posix())

    def copy(self) -> "ExcludedRecords":
        """Return the same, to be added to."""
        copied = ExcludedRecords(self.folders)
        copied.records = {reason: list(names) for reason, names in self.records.items()}
        return copied

    def summary(self, kept: int) -> str:
        """Return how many records were read, and one line per reason with a count and the first few names."""
        found = kept + sum(map(len, self.records.values()))
        lines = [f"{kept} of {found} records read"]
        for reason in Reason:
            names = self.records.get(reason, [])
            if names:
                lines.append(f"  {len(names)} left out, {reason}: {few(names)}")
        return "\n".join(lines)


def few(names: Sequence[str]) -> str:
    """Return the first three names, and dots for more."""
    return ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])])
