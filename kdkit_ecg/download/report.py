"""Say how a fetch went."""

from dataclasses import dataclass

from kdkit_ecg.utils.disk import shown

TOLD = 10  # failures that are told one by one


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadReport:
    """How it went: numbers of files and of bytes, seconds, and why files failed by path."""

    there: int
    came: int
    size: int
    seconds: float
    failed: dict[str, str]

    @property
    def told(self) -> str:
        """What to say of it."""
        speed = f", {shown(self.size / self.seconds)}/s" if self.size > 0 and self.seconds >= 1 else ""
        files = "1 file" if self.came == 1 else f"{self.came:,} files"
        return f"{files} came, {shown(self.size)} in {self.seconds:.0f} s{speed}; {self.there:,} were there"


def failures(fetched: DownloadReport) -> str:
    """Return what to say of the files that failed."""
    lines = [f"  {path}: {why}" for path, why in list(fetched.failed.items())[:TOLD]]
    if len(fetched.failed) > TOLD:
        lines.append(f"  and {len(fetched.failed) - TOLD:,} more")
    count = "1 file" if len(fetched.failed) == 1 else f"{len(fetched.failed):,} files"
    return "\n".join(
        [f"{count} could not be fetched:", *lines, "everything else is kept; run the same command again to try these"]
    )
