"""Summarise a finished download."""

from dataclasses import dataclass

from kdkit.utils.reprs import format_bytes

MAX_NAMES = 10  # failed files that are named


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadReport:
    """Result of a download. present and fetched: numbers of files. size: bytes fetched. failed: path -> reason."""

    present: int
    fetched: int
    size: int
    seconds: float
    failed: dict[str, str]

    @property
    def summary(self) -> str:
        """One line about the files and bytes that were fetched."""
        # The speed of a download of less than a second is meaningless.
        speed = f", {format_bytes(self.size / self.seconds)}/s" if self.size > 0 and self.seconds >= 1 else ""
        return (
            f"{_count_files(self.fetched)} fetched, {format_bytes(self.size)} in {self.seconds:.0f} s{speed}; "
            f"{self.present:,} were already correct"
        )

    @property
    def failures(self) -> str:
        """The error message about the files that failed."""
        lines = [f"  {path}: {reason}" for path, reason in list(self.failed.items())[:MAX_NAMES]]
        if len(self.failed) > MAX_NAMES:
            lines.append(f"  and {len(self.failed) - MAX_NAMES:,} more")
        title = f"{_count_files(len(self.failed))} could not be fetched:"
        advice = "all fetched files are kept; run the same command again to retry these"
        return "\n".join([title, *lines, advice])


def _count_files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"
