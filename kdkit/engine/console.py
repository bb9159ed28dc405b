"""Print the progress of a run: a progress bar per stage, a line per epoch, and a table of metrics at the end."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from kdkit.plugins.events import (
    BaselineDifference,
    EpochEnded,
    ReportedMetric,
    RunEnded,
    RunStarted,
    StageStarted,
    StepEnded,
)
from kdkit.plugins.hooks import hookimpl
from kdkit.utils.console import Status, make_console
from kdkit.utils.memory import format_bytes

# Seconds between two updates of the progress bar. An update at each step would cost more than the step of a small net.
_BAR_INTERVAL = 0.2


@contextmanager
def progress_display(progress: bool | None) -> Iterator[tuple[Status, list["ConsoleCallback"]]]:
    """Return, as a context, the status of a run before its first stage, and the callbacks that print its progress.

    progress: see RunOptions; None prints to a terminal or a notebook only.
    """
    console = make_console()
    shown = console.is_terminal or console.is_jupyter if progress is None else progress
    with Status(enabled=shown) as status:
        yield status, [ConsoleCallback(console, status)] if shown else []


class ConsoleCallback:
    """Prints to a rich console: a progress bar on a terminal or in a notebook, and always a line per epoch."""

    def __init__(self, console: Console, status: Status | None = None) -> None:
        self.console = console
        # In a notebook, rich draws the bar by ipywidgets, and would warn at every update without it.
        self._has_bar = find_spec("ipywidgets") is not None if console.is_jupyter else console.is_terminal
        self._status = Status(enabled=False) if status is None else status
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._pending_steps = 0  # steps that the bar does not show yet
        self._last_update = 0.0
        self._epochs = 0  # of the current stage
        self._ended_epochs: int | None = None  # of them; None before the first one ended

    @hookimpl
    def run_started(self, event: RunStarted) -> None:
        """Print the recipe, its stages and the notices."""
        self._status.stop()
        # `escape` because names of recipes, stages and terms may contain square brackets, which are markup to rich.
        self.console.print(
            f"[bold]{escape(event.recipe)}[/bold]: {escape(' -> '.join(event.stages))}  "
            f"(device {escape(event.device)}, seed {event.seed})"
        )
        self._print_notes(event.notices)
        self._status.show(f"opening stage {event.stages[0]}", terminal_only=True)

    @hookimpl
    def stage_started(self, event: StageStarted) -> None:
        """Print the stage and start its progress bar."""
        self._status.stop()
        self._stop_bar()
        self._report_early_end()
        self._epochs = event.epochs
        resumed = f", resumed after epoch {event.epoch}" if event.epoch else ""
        if event.batch:
            resumed = f", resumed in epoch {event.epoch + 1} after {event.batch} of {event.batches} batches"
        epochs = f"{event.epochs} epoch{'' if event.epochs == 1 else 's'}{resumed}"
        self.console.print(f"\n[bold]{event.index + 1}. {escape(event.name)}[/bold]: {epochs}")
        self._print_notes(event.notices)
        if self._has_bar:
            self._progress = Progress(
                TextColumn("   {task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
                refresh_per_second=1 / _BAR_INTERVAL,
            )
            total = event.batches * (event.epochs - event.epoch) - event.batch
            self._task = self._progress.add_task("batches", total=total)
            self._progress.start()

    @hookimpl
    def step_ended(self, event: StepEnded) -> None:
        """Advance the progress bar. Reads no term, since that would wait for the device."""
        self._pending_steps += 1
        if time.monotonic() - self._last_update >= _BAR_INTERVAL:
            self._update_bar()

    @hookimpl
    def epoch_ended(self, event: EpochEnded) -> None:
        """Print the terms and the monitored metric; a star marks the best epoch so far.

        After the last epoch, print the peak memory of the stage, if it was measured.
        """
        self._update_bar()
        self._ended_epochs = event.epoch + 1
        terms = "  ".join(f"{escape(label)} {format_number(value)}" for label, value in event.terms.items())
        star = " *" if event.best else ""
        self.console.print(
            f"   epoch {event.epoch + 1:>3}  {terms}  [dim]validation[/dim] {escape(event.monitor)} "
            f"{format_number(event.monitor_value)}{star}  [dim]{event.seconds:.1f} s[/dim]",
            soft_wrap=True,  # a line that a log file keeps whole
        )
        if self._ended_epochs == self._epochs and event.peak_memory_bytes is not None:
            self.console.print(f"   peak memory {format_bytes(event.peak_memory_bytes, base=1024)}", style="dim")

    @hookimpl
    def run_ended(self, event: RunEnded) -> None:
        """Print the table of metrics, their notes and the run folder. Prints nothing after an error."""
        self._status.stop()
        self._stop_bar()
        if event.error is not None:
            return
        self._report_early_end()
        self.console.print()
        self.console.print(metrics_table(event))
        self._print_differences(event)
        # Several nets often have the same note, such as classes without positives.
        self._print_notes(
            sorted({result.note for results in event.metrics.values() for result in results.values() if result.note})
        )
        if event.folder is not None:
            self.console.print(f"saved to {event.folder}", markup=False, soft_wrap=True)

    def _print_differences(self, event: RunEnded) -> None:
        """Print whether distillation helped each student that has a baseline, by the first metric."""
        first = {difference.student: difference for difference in reversed(event.differences)}
        for student, difference in reversed(first.items()):
            name = f" of {student}" if len(first) > 1 else ""
            self.console.print(
                f"distillation{name}: {describe_difference(difference, event.metrics)}", markup=False, soft_wrap=True
            )

    def _report_early_end(self) -> None:
        """Print that the stage before ended early, by its patience or a callback."""
        if self._ended_epochs is not None and self._ended_epochs < self._epochs:
            self.console.print(f"   ended after epoch {self._ended_epochs} of {self._epochs}", style="dim")
        self._ended_epochs = None

    def _print_notes(self, notes: Iterable[str]) -> None:
        for note in notes:
            self.console.print(f"note: {note}", style="yellow", markup=False, soft_wrap=True)

    def _update_bar(self) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, self._pending_steps)
        self._pending_steps, self._last_update = 0, time.monotonic()

    def _stop_bar(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._task = None, None


def metrics_table(event: RunEnded) -> Table:
    """Return a table with a row for each net: its parameters and its metrics."""
    table = Table(title=f"Metrics on {event.reported_on} ({event.seconds:.0f} s in all)", title_justify="left")
    table.add_column("net")
    table.add_column("parameters", justify="right")
    # Nets may have different metrics; a dict keeps the order of the first net that has each.
    names = list(dict.fromkeys(name for results in event.metrics.values() for name in results))
    for name in names:
        table.add_column(escape(name), justify="right")
    for net, results in event.metrics.items():
        values = [_with_interval(results[name]) if name in results else "-" for name in names]
        table.add_row(escape(net), f"{event.parameters[net]:,}", *values)
    return table


def describe_difference(difference: BaselineDifference, metrics: Mapping[str, Mapping[str, ReportedMetric]]) -> str:
    """Return a difference in words: "macro_f1 0.812 against 0.794 alone, +1.8 points (95 % interval +0.3 to +3.1)".

    A point is 0.01, in which shares are compared; metrics that are no shares are compared in their unit.
    """
    value, alone = (metrics[net][difference.metric].value for net in (difference.student, difference.baseline))
    is_share = all(abs(number) <= 1 for number in (value, alone, difference.value))
    scale, unit = (100, " points") if is_share else (1, "")
    change, low, high = (
        f"{scale * number:+.2g}" if abs(scale * number) < 1 else f"{scale * number:+.1f}"
        for number in (difference.value, *difference.interval)
    )
    return (
        f"{difference.metric} {value:.3f} against {alone:.3f} alone, {change}{unit} "
        f"({difference.level:.0%} interval {low} to {high}): {difference.verdict}"
    ).replace("%", " %")


def results_table(results: Mapping[str, ReportedMetric], title: str) -> Table:
    """Return a table with a row for each metric of one net."""
    table = Table(title=escape(title), title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, result in results.items():
        table.add_row(escape(name), _with_interval(result))
    return table


def _with_interval(result: ReportedMetric) -> str:
    if result.interval is None:
        return format_number(result.value)
    low, high = result.interval
    return f"{format_number(result.value)} ({format_number(low)} to {format_number(high)})"


def format_number(value: float) -> str:
    """Return a number as tables show it; "-" for NaN."""
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"
