"""A callback that is passed to a run: `kdkit.run(recipe, callbacks=[CsvLog(Path("log.csv"))])`."""

import csv
from pathlib import Path

from kdkit import hookimpl
from kdkit.plugins.events import EpochEnded, RunStarted


class CsvLog:
    """Write the terms and the monitored metric of every epoch to a CSV file, after a line with the settings of the run.

    A hook of the same name in `plugin.py` would be called in every run, without `callbacks=`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @hookimpl
    def run_started(self, event: RunStarted) -> None:
        """Begin a new file, or continue that of a resumed run."""
        settings = "; ".join(f"{name}={value}" for name, value in event.settings.items())
        with self.path.open("a" if event.resumed else "w", encoding="utf-8") as file:
            file.write(f"# {event.recipe}, {settings}\n")

    @hookimpl
    def epoch_ended(self, event: EpochEnded) -> None:
        """Add a row for each term, and one for the metric."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            for name, value in {**event.terms, event.monitor: event.monitor_value}.items():
                csv.writer(file).writerow([event.stage, event.epoch, name, value])
