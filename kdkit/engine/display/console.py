"""Print the progress of a run: a live view on a terminal, a line per epoch, and a table of metrics at the end."""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

from kdkit.engine.display.live import LiveDisplay, can_redraw
from kdkit.engine.display.tables import describe_difference, metrics_table
from kdkit.engine.interrupts import announce_on_stderr
from kdkit.engine.storage.run_folder import is_in_study
from kdkit.plugins.events import EpochEnded, RunEnded, RunStarted, StageStarted, StepEnded
from kdkit.plugins.hooks import hookimpl
from kdkit.utils.console import Status, format_number, make_console
from kdkit.utils.reprs import distinct_notes, format_bytes


@contextmanager
def progress_display(
    progress: bool | None, *, verbose: bool = False
) -> Iterator[tuple[Status, list["ConsoleCallback"]]]:
    """Show the progress of a run in this context. Yields the status before its first stage, and the callbacks.

    progress, verbose: see RunOptions; None prints to a terminal or a notebook only.
    """
    console = make_console()
    shown = console.is_terminal if progress is None else progress
    with Status(enabled=shown) as status:
        callbacks = [ConsoleCallback(console, status, verbose=verbose)] if shown else []
        try:
            yield status, callbacks
        finally:
            for callback in callbacks:  # after an error before `run_ended`
                callback.close()


class NoticeLog:
    """Logs the notices of a run as warnings of the logger "kdkit", which Python writes to stderr by default."""

    @hookimpl
    def run_started(self, event: RunStarted) -> None:
        """Log the notices."""
        for notice in event.notices:
            logging.getLogger("kdkit").warning("note: %s", notice)


class ConsoleCallback:
    """Prints a line per epoch to a rich console, and on a terminal shows a live view of the run below it."""

    def __init__(self, console: Console, status: Status | None = None, *, verbose: bool = False) -> None:
        self.console = console
        self.verbose = verbose
        self._display = LiveDisplay(console)
        self._status = Status(enabled=False) if status is None else status
        self._stage: StageStarted | None = None
        self._ended_epochs: int | None = None  # of the current stage; None before the first one ended

    @hookimpl
    def run_started(self, event: RunStarted) -> None:
        """Print the recipe, its stages and the notices."""
        self._status.stop()
        # Names of recipes, stages and terms may contain square brackets, which are markup in rich.
        self.console.print(
            f"[bold]{escape(event.recipe)}[/bold]: {escape(' -> '.join(event.stages))}  "
            f"(device {escape(event.device)}, seed {event.seed})"
        )
        self._print_notes(event.notices)
        if self.verbose:
            for title in ("versions", "options", "settings", "parameters"):
                values = "  ".join(f"{name} {value}" for name, value in getattr(event, title).items())
                if values:
                    self._print_details(f"{title}: {values}")
        self._display.progress.start(event)
        self._status.show(f"opening stage {event.stages[0]}", terminal_only=True)

    @hookimpl
    def stage_started(self, event: StageStarted) -> None:
        """Print the stage, and show it in the live view."""
        self._status.stop()
        self._report_early_end()
        self._stage = event
        resumed = f", resumed after epoch {event.epoch}" if event.epoch else ""
        if event.batch:
            resumed = f", resumed in epoch {event.epoch + 1} after {event.batch} of {event.batches} batches"
        epochs = f"{event.epochs} epoch{'' if event.epochs == 1 else 's'}{resumed}"
        self.console.print(f"\n[bold]{event.index + 1}. {escape(event.name)}[/bold]: {epochs}")
        self._print_notes(event.notices)
        self._display.progress.start_stage(event, time.monotonic())
        if can_redraw(self.console):
            self._display.start()

    @hookimpl
    def step_ended(self, event: StepEnded) -> None:
        """Advance the live view. It reads the terms of few steps, because reading may wait for the device."""
        if self._display.is_shown:
            self._display.step(event)

    @hookimpl
    def epoch_ended(self, event: EpochEnded) -> None:
        """Print the terms and the monitored metric; a star marks the best epoch so far.

        After the last epoch, print the peak memory of the stage, if it was measured.
        """
        self._ended_epochs = event.epoch + 1
        self._display.progress.end_epoch(event, time.monotonic())
        terms = "  ".join(f"{escape(label)} {format_number(value)}" for label, value in event.terms.items())
        star = " *" if event.best else ""
        self.console.print(
            f"   epoch {event.epoch + 1:>3}  {terms}  [dim]validation[/dim] {escape(event.monitor)} "
            f"{format_number(event.monitor_value)}{star}  [dim]{event.seconds:.1f} s[/dim]",
            soft_wrap=True,  # keeps the line whole in a log file
        )
        if self.verbose:
            self._print_epoch_details(event)
        last = self._stage is not None and self._ended_epochs == self._stage.epochs
        if last and event.peak_memory_bytes is not None:
            self.console.print(f"   peak memory {format_bytes(event.peak_memory_bytes, base=1024)}", style="dim")

    @hookimpl
    def run_ended(self, event: RunEnded) -> None:
        """Print the table of metrics, their notes and the run folder. Prints nothing after an error."""
        self.close()
        if event.error is not None:
            return
        self._report_early_end()
        self.console.print()
        self.console.print(metrics_table(event))
        self._print_differences(event)
        self._print_notes(
            distinct_notes(result.note for results in event.metrics.values() for result in results.values())
        )
        if event.folder is not None:
            self.console.print(f"saved to {event.folder}", markup=False, soft_wrap=True)

    def announce(self, text: str) -> None:
        """Print a line from a signal handler: above the live view if there is one, otherwise to stderr."""
        if self._display.is_shown:
            self._display.announce(text)
        else:
            announce_on_stderr(text)

    def close(self) -> None:
        """Remove the status and the live view from the terminal."""
        self._status.stop()
        self._display.stop()

    def _print_differences(self, event: RunEnded) -> None:
        """Print whether distillation helped each student with a baseline, by the first metric."""
        first = {difference.student: difference for difference in reversed(event.differences)}
        is_alone = event.folder is None or not is_in_study(event.folder)
        advice = "; one seed cannot tell whether distillation helps (--seeds 5)" if is_alone else ""
        for student, difference in reversed(first.items()):
            name = f" of {student}" if len(first) > 1 else ""
            self.console.print(
                f"distillation{name}: {describe_difference(difference, event.metrics)}{advice}",
                markup=False,
                soft_wrap=True,
            )

    def _report_early_end(self) -> None:
        """Print that the previous stage ended early, because of its patience or a callback."""
        epochs = 0 if self._stage is None else self._stage.epochs
        if self._ended_epochs is not None and self._ended_epochs < epochs:
            self.console.print(f"   ended after epoch {self._ended_epochs} of {epochs}", style="dim")
        self._ended_epochs = None

    def _print_notes(self, notes: Iterable[str]) -> None:
        for note in notes:
            self.console.print(f"note: {note}", style="yellow", markup=False, soft_wrap=True)

    def _print_details(self, text: str) -> None:
        self.console.print(text, style="dim", markup=False, soft_wrap=True)

    def _print_epoch_details(self, event: EpochEnded) -> None:
        """Print the weights, the learning rate, the speed, and the gradient statistics if they were recorded."""
        weights = "  ".join(f"{label} {weight:.3g}" for label, weight in event.weights.items())
        samples = None if self._stage is None else self._stage.samples
        # The seconds of a resumed epoch include the time before it was interrupted, so all samples count.
        speed = "" if samples is None or not event.seconds else f"  {samples / event.seconds:,.0f} samples/s"
        self._print_details(f"      weights {weights}  learning rate {event.learning_rate:.3g}{speed}")
        for kind, values in (event.gradients or {}).items():
            if values:  # there are no cosines with a single term
                numbers = "  ".join(f"{label} {value:.3g}" for label, value in values.items())
                self._print_details(f"      gradient {kind} {numbers}")
