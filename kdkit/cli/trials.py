"""Run the trials of a study, and print a line for each."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import fmean

from kdkit.engine.storage.run_folder import read_record
from kdkit.errors import KdkitError, RunFolderError, Terminated, first_line
from kdkit.study.study import Study
from kdkit.study.trial import TrialResult
from kdkit.utils.printable import echo
from kdkit.utils.read_json import items


def run_and_print(
    study: Study, results: Iterator[TrialResult], title: str, *, jobs: int, quiet: bool, notices: bool
) -> dict[str, str]:
    """Run all trials, and return a line for each failed trial, by name.

    results: of the study; iterating over them runs the trials. jobs: how many run at once, to estimate the remaining
    time. notices: whether to print each different notice of the runs once, because the runs themselves print nothing.
    """
    count, pending = len(study.trials), {trial.name for trial in study.trials if not study.finished(trial.name)}
    if not quiet:
        echo(title + (f", {count - len(pending)} of them finished" if len(pending) < count else ""))
    failures: dict[str, str] = {}
    seconds: list[float] = []
    seen: set[str] = set()
    try:
        for number, result in enumerate(results, 1):
            if result.error is not None:
                failures[result.trial.name] = f"{result.trial.name} {result.state}: {_describe(result.error)}"
            duration = remaining = ""
            pending.discard(result.trial.name)
            if result.state == "finished":
                seconds.append(result.seconds)
                duration = f" in {result.seconds:.0f} s"
                left = fmean(seconds) * len(pending) / jobs
                remaining = f", about {left / 60:.0f} min left" if left >= 60 else ""
            if not quiet:
                echo(f"[{number}/{count}] {result.trial.name} {result.state}{duration}{remaining}")
            if notices and result.state == "finished" and not quiet:
                new = [notice for notice in _notices_of(study.path(result.trial.name)) if notice not in seen]
                seen.update(new)
                for notice in new:
                    echo(f"note: {notice}")
    except (KeyboardInterrupt, Terminated):
        echo("\nfinished runs are kept; to resume, run the same command again", err=True)
        raise
    return failures


def _notices_of(folder: Path) -> list[str]:
    """Return the notices of a finished run; none if its record is damaged."""
    with suppress(RunFolderError):
        return [str(notice) for notice in items(read_record(folder), "notices")]
    return []


def _describe(error: Exception) -> str:
    """Return an error as a line with its class and position. Errors of kdkit need neither, and may be longer."""
    if isinstance(error, KdkitError):
        return str(error)
    notes = [
        note.removeprefix("kdkit: ") for note in getattr(error, "__notes__", ()) if note.startswith("kdkit: raised")
    ]
    return f"{type(error).__name__}: {first_line(error)}" + (f" ({'; '.join(notes)})" if notes else "")
