"""Draw the state of a run in a few lines that fit into the terminal."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from kdkit.engine.display.progress import RunProgress, ShownStage, ShownTerm
from kdkit.utils.console import format_number
from kdkit.utils.printable import printable

_MAX_LINES, _MAX_WIDTH = 15, 120
_CURVE = 24  # columns of a curve
_NUMBER = 10  # columns of a number with the space before it
_LABEL = 32  # columns of the longest label
_STYLES = {"done": "green", "running": "cyan", "waiting": "dim"}


class _Glyphs(NamedTuple):
    """Characters for the states of stages, between stages, for both parts of a bar, and for the levels of a curve."""

    symbols: dict[str, str]
    arrow: str
    full: str
    empty: str
    levels: str


_UNICODE = _Glyphs({"done": "✓", "running": "●", "waiting": "○"}, " → ", "━", "─", "▁▂▃▄▅▆▇█")
_ASCII = _Glyphs({"done": "+", "running": "*", "waiting": "o"}, " -> ", "#", "-", "_.-=+*#@")  # if stdout is not UTF-8


class RunView:
    """A renderable of a `RunProgress`, at most 15 lines of 120 columns.

    In a short terminal, terms are left out first, then the stages, the speed and the metric. In a narrow terminal,
    curves become shorter and columns are left out.

    clock: returns the current time on the clock of `progress`, in seconds.
    """

    def __init__(self, progress: RunProgress, clock: Callable[[], float]) -> None:
        self.progress = progress
        self._clock = clock
        self._drawn: list[int] = []  # the widths of the lines drawn last

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        width = min(options.max_width, _MAX_WIDTH)
        # One line stays free, so that the view never scrolls the terminal.
        room = max(1, min(_MAX_LINES, options.size.height - 1))
        lines = _Lines(self.progress, width, _ASCII if options.ascii_only else _UNICODE).drawn(room, self._clock())
        for line in lines:
            line.no_wrap = True
            line.rstrip()
            line.truncate(width, overflow="ellipsis")
        self._drawn = [line.cell_len for line in lines]
        yield from lines

    def rows_added(self, width: int) -> int:
        """Return how many extra rows the lines drawn last take in a terminal that has become this narrow."""
        return sum(math.ceil(columns / width) - 1 for columns in self._drawn if columns > width)


class _Lines:
    """Builds the lines of a view with this width."""

    def __init__(self, progress: RunProgress, width: int, glyphs: _Glyphs) -> None:
        self.progress, self.width, self.glyphs = progress, width, glyphs

    def drawn(self, room: int, now: float) -> list[Text]:
        """Return as many lines as there is room for. now: the time on the clock of `RunView`."""
        stage = self.progress.current
        if stage is None:
            return [self._stages()]
        position = [self._position(stage), self._metric(stage), self._rates(stage, now)]
        if room < 4:
            return position[:room]
        terms = self._terms(stage, room - 4)
        # If there is room, blank lines separate the view from the lines above it, and its parts from each other.
        blanks = room - 4 - len(terms)
        above, after_run, after_position = ([Text()] if blanks >= least else [] for least in (3, 1, 2))
        return [*above, self._stages(), *after_run, *position, *after_position, *terms]

    def _stages(self) -> Text:
        """Return the stages in order. If they do not fit, those that are done and that wait are counted."""
        stages = self.progress.stages
        line = self._joined([self._stage(stage) for stage in stages])
        if line.cell_len <= self.width:
            return line
        parts: list[Text] = []
        for state in ("done", "running", "waiting"):
            in_state = [stage for stage in stages if stage.state == state]
            if state == "running":
                parts += map(self._stage, in_state)
            elif in_state:
                parts.append(Text(f"{self.glyphs.symbols[state]} {len(in_state)} {state}", style=_STYLES[state]))
        return self._joined(parts)

    def _stage(self, stage: ShownStage) -> Text:
        style = _STYLES[stage.state]
        symbol = (f"{self.glyphs.symbols[stage.state]} ", style)
        part = Text.assemble(symbol, (stage.name, "dim" * (stage.state == "waiting")))
        if stage.best is not None and not math.isnan(stage.best):
            part.append(f" {format_number(stage.best)}", style)
        return part

    def _joined(self, parts: Sequence[Text]) -> Text:
        return Text.assemble((self.glyphs.arrow, "dim")).join(parts)

    def _position(self, stage: ShownStage) -> Text:
        """Return the epoch and batch of the current stage, with a progress bar."""
        epochs, batches = stage.epochs or 0, stage.batches
        start = Text.assemble(
            (_shortened(stage.name, self.width // 3), "bold"), f"  epoch {min(stage.epoch + 1, epochs)} of {epochs}  "
        )
        if stage.state == "done":
            waits = any(other.state == "waiting" for other in self.progress.stages)
            end = "opening the next stage" if waits else "computing the metrics"
        elif stage.batch == batches:
            end = "validating"
        else:
            end = f"batch {stage.batch:>{len(str(batches))}} of {batches}"
        # Padded to the longest possible text, so that the bar keeps its length.
        end = end.ljust(len(f"batch {batches} of {batches}"))
        columns = self.width - start.cell_len - len(end) - 2
        if columns < 8:
            return start.append(end)
        filled = round(stage.share * columns)
        bar = Text.assemble((self.glyphs.full * filled, "green"), (self.glyphs.empty * (columns - filled), "dim"))
        return start.append(bar).append(f"  {end}")

    def _rates(self, stage: ShownStage, now: float) -> Text:
        speed = self.progress.samples_per_second(now)
        left, run_left = self.progress.seconds_left(now)
        unit = "batches" if stage.samples is None else "samples"
        times = "" if left is None or stage.state == "done" else f"about {duration(left)} left in the stage"
        if times and run_left is not None:
            times += f", {duration(run_left)} in the run"
        parts = [
            "" if speed is None else f"{speed:,.0f} {unit}/s" if speed >= 10 else f"{speed:.2g} {unit}/s",
            "" if math.isnan(stage.learning_rate) else f"learning rate {stage.learning_rate:.3g}",
            times,
        ]
        return Text("   ".join(filter(None, parts)), style="dim")

    def _terms(self, stage: ShownStage, room: int) -> list[Text]:
        """Return a table of the first terms, as many as fit."""
        names = list(stage.terms)
        if not names or room < min(len(names) + 1, 3):
            return []
        # The header takes one line, and the number of hidden terms another.
        shown = len(names) if len(names) < room else room - 2
        label = min(_LABEL, self.width // 2, max(cell_len(printable(name)) for name in names))
        columns = ["weight", "value", "weighted"]
        while len(columns) > 1 and label + _NUMBER * len(columns) + 8 > self.width:  # 8 columns for a short curve
            del columns[-2]
        header = Text(" " * label + "".join(f"{name:>{_NUMBER}}" for name in columns), style="dim")
        lines = [self._term(name, stage.terms[name], label, columns) for name in names[:shown]]
        hidden = [Text(f"and {len(names) - shown} more terms", style="dim")] if shown < len(names) else []
        return [header, *lines, *hidden]

    def _term(self, name: str, term: ShownTerm, label: int, columns: Sequence[str]) -> Text:
        numbers = {
            "weight": "-" if math.isnan(term.weight) else f"{term.weight:.3g}",
            "value": format_number(term.value),
            "weighted": format_number(term.weight * term.value),
        }
        line = Text(set_cell_size(_shortened(printable(name), label), label))
        for column in columns:
            line.append(f"{numbers[column]:>{_NUMBER}}", "bold" if column == "weighted" else "")
        return line.append("  ").append(
            sparkline(term.curve, self.width - line.cell_len - 2, self.glyphs.levels), "cyan"
        )

    def _metric(self, stage: ShownStage) -> Text:
        """Return the monitored metric: its value in the last validation, its curve, and its best value."""
        value = format_number(stage.monitored[-1]) if stage.monitored else "-"
        line = Text.assemble(("validation ", "dim"), _shortened(stage.monitor, self.width // 2), "  ", (value, "bold"))
        if stage.best is None or math.isnan(stage.best):
            return line
        best = f"  best {format_number(stage.best)}"
        epoch = f" in epoch {stage.best_epoch}" if stage.best_epoch else ""
        room = self.width - line.cell_len - len(best)
        curve = sparkline(stage.monitored, room - len(epoch) - 2, self.glyphs.levels)
        if curve:
            line.append("  ").append(curve, "green")
        return line.append(best + epoch if len(epoch) <= room else best, "green")


def _shortened(text: str, width: int) -> str:
    """Return a text, with its end replaced by dots if it is too long."""
    return text if cell_len(text) <= width else set_cell_size(text, max(0, width - 2)) + ".."


def sparkline(values: Sequence[float], width: int, levels: str = _UNICODE.levels) -> str:
    """Return a curve in one line of at most `width` columns, and at most 24; a column is a mean of neighboring values.

    Values that are not finite become blanks.
    """
    columns = min(width, _CURVE, len(values))
    if columns < 1:
        return ""
    bounds = [round(index * len(values) / columns) for index in range(columns + 1)]
    # Half of each mean, because the difference of two large means may overflow.
    means = [sum(values[first:end]) / (end - first) / 2 for first, end in pairwise(bounds)]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return "".join(
        " " if not math.isfinite(mean) else levels[round((mean - low) / (high - low) * 7) if high > low else 3]
        for mean in means
    )


def duration(seconds: float) -> str:
    """Return a duration as a clock shows it: "0:48", "5:40" or "1:05:40"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
