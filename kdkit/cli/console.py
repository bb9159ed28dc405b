"""Tell a person how a run goes: a line an epoch, a bar a stage, and a table of scores at the end."""

import math
import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from kdkit.metrics import MetricResult
from kdkit.plugins.events import EpochEnded, RunEnded, RunStarted, StageStarted, StepEnded
from kdkit.plugins.hooks import hookimpl


def console_for_people() -> Console:
    """Return a console as wide as the terminal; where there is none, wide enough for tables to keep their form."""
    console = Console(highlight=False, emoji=False)  # a label such as ":x:" shows as it is
    return console if console.is_terminal else Console(highlight=False, emoji=False, width=120)


_PAUSE = 0.2  # seconds between two moves of the bar, which would else cost more than the step of a small net


class ConsoleCallback:
    """Writes to a rich console. The bar shows on a terminal only; elsewhere there is a line an epoch."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._steps, self._moved = 0, 0.0  # steps that the bar does not show yet, and when it was moved last

    @hookimpl
    def run_started(self, event: RunStarted) -> None:
        """Say what is run, and all that a reader of its figures must know."""
        self.console.print(
            f"[bold]{escape(event.recipe)}[/bold]: {escape(' -> '.join(event.stages))}  "
            f"(device {escape(event.device)}, seed {event.seed})"
        )
        for notice in event.notices:
            self.console.print(f"note: {notice}", style="yellow", markup=False, soft_wrap=True)

    @hookimpl
    def stage_started(self, event: StageStarted) -> None:
        """Begin a bar."""
        self._stop()
        going_on = f", going on after epoch {event.epoch}" if event.epoch else ""
        self.console.print(f"\n[bold]{event.index + 1}. {escape(event.name)}[/bold]: {event.epochs} epochs{going_on}")
        for notice in event.notices:
            self.console.print(f"note: {notice}", style="yellow", markup=False, soft_wrap=True)
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("   {task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
                refresh_per_second=1 / _PAUSE,
            )
            total = event.batches * (event.epochs - event.epoch)
            self._task = self._progress.add_task("batches", total=total)
            self._progress.start()

    @hookimpl
    def step_ended(self, event: StepEnded) -> None:
        """Move the bar; no figure is read, since that may wait for the device."""
        self._steps += 1
        if time.monotonic() - self._moved >= _PAUSE:
            self._move()

    @hookimpl
    def epoch_ended(self, event: EpochEnded) -> None:
        """Write a line."""
        self._move()
        terms = "  ".join(f"{escape(label)} {_figure(value)}" for label, value in event.terms.items())
        star = " *" if event.best else ""
        self.console.print(
            f"   epoch {event.epoch + 1:>3}  {terms}  [dim]validation[/dim] {escape(event.monitor)} "
            f"{_figure(event.monitor_value)}{star}  [dim]{event.seconds:.1f} s[/dim]",
            soft_wrap=True,
        )

    @hookimpl
    def run_ended(self, event: RunEnded) -> None:
        """Write the table of scores, and where the run is kept."""
        self._stop()
        if event.error is not None:
            return
        self.console.print()
        self.console.print(metrics_table(event))
        notes = {
            (net, compute_metrics.note)
            for net, each in event.metrics.items()
            for compute_metrics in each.values()
            if compute_metrics.note
        }
        for note in sorted({note for _, note in notes}):
            self.console.print(f"note: {note}", style="yellow", markup=False, soft_wrap=True)
        if event.folder is not None:
            self.console.print(f"kept in {event.folder}", markup=False, soft_wrap=True)

    def _move(self) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, self._steps)
        self._steps, self._moved = 0, time.monotonic()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._task = None, None


def metrics_table(event: RunEnded) -> Table:
    """Return a row for each net: its parameters and its scores."""
    table = Table(title=f"Scores on {event.reported_on} ({event.seconds:.0f} s in all)", title_justify="left")
    table.add_column("net")
    table.add_column("parameters", justify="right")
    names = list(dict.fromkeys(name for each in event.metrics.values() for name in each))
    for name in names:
        table.add_column(escape(name), justify="right")
    for net, metrics in event.metrics.items():
        figures = [_with_interval(metrics[name]) if name in metrics else "-" for name in names]
        table.add_row(escape(net), f"{event.parameters[net]:,}", *figures)
    return table


def _with_interval(compute_metrics: MetricResult) -> str:
    if compute_metrics.interval is None:
        return _figure(compute_metrics.value)
    low, high = compute_metrics.interval
    return f"{_figure(compute_metrics.value)} ({_figure(low)} to {_figure(high)})"


def _figure(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"
