"""The charts of a report, as SVG in its page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kdkit.report import formats
from kdkit.report.svg import COLOURS, Point, Svg

_HOVERED = 120  # most points of a series that show their value; more would overlap
_WRITTEN = 10  # most columns of a heat map that shows its values as text
_LONGEST_NAME = 24  # characters of the name of a row or column


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A line of a chart. colour: the number of its colour. marked: the x of the marked point, or None."""

    name: str
    points: Sequence[Point]
    colour: int = 0
    marked: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A row of a chart of intervals: a value with its bounds, and whether they exclude 0."""

    name: str
    value: float
    interval: tuple[float, float]
    text: str
    tone: str = ""


def difference_bar(name: str, value: float, interval: tuple[float, float], verdict: object, *, points: bool) -> Bar:
    """Return the row of a difference with its verdict, such as "better". points: whether to show it in points."""
    scale = 100 if points else 1
    low, high = interval
    return Bar(
        name=name,
        value=scale * value,
        interval=(scale * low, scale * high),
        text=f"{formats.signed(value, points=points)} ({formats.signed_bounds(interval, points=points)})",
        tone=str(verdict) if verdict in ("better", "worse") else "",
    )


def line_chart(title: str, series: Sequence[Series], *, bounds: tuple[float, float] | None) -> Markup:
    """Return lines over epochs. bounds: of the vertical axis; from the values if None."""
    width, height, left, right, top, bottom = 344, 196, 44, 12, 12, 34
    points = [point for line in series for point in line.points if math.isfinite(point[1])]
    if not points:
        return Markup("")
    low, high = bounds or (min(y for _, y in points), max(y for _, y in points))
    ticks = nice_ticks(low, high)
    # The axis ends at round numbers, unless its bounds are given.
    low, high = (low, high) if bounds else (min(low, ticks[0]), max(high, ticks[-1]))
    first, last = min(x for x, _ in points), max(x for x, _ in points)

    def at(x: float, y: float) -> Point:
        """Return the position in the picture; its vertical axis points down."""
        share_x = (x - first) / (last - first) if last > first else 0.5
        share_y = (y - low) / (high - low) if high > low else 0.5
        return left + share_x * (width - left - right), height - bottom - share_y * (height - top - bottom)

    svg = Svg(width)
    for tick in ticks:
        if low <= tick <= high:
            _, y = at(first, tick)
            svg.line("grid", (left, y), (width - right, y))
            svg.text("tick end", left - 8, y + 3.5, formats.tick(tick))
    for epoch in dict.fromkeys(round(tick) for tick in nice_ticks(first, last, 6)):
        if first <= epoch <= last:
            svg.text("tick mid", at(epoch, low)[0], height - bottom + 16, str(epoch))
    svg.text("tick end", width - right, height - 3, "epoch")
    for line in series:
        shown = [point for point in line.points if math.isfinite(point[1])]
        colour = f"c{line.colour % COLOURS}"
        svg.polyline(f"line {colour}", (at(*point) for point in shown))
        for x, y in shown:
            is_marked = x == line.marked
            if is_marked:
                svg.circle(f"dot {colour}", *at(x, y), 4)
            # A wide transparent circle: browsers show its title when the mouse is near the point.
            if is_marked or len(shown) <= _HOVERED:
                kept = ", kept" if is_marked else ""
                svg.circle("hit", *at(x, y), 6, title=f"{line.name}, epoch {x:g}: {y:.4g}{kept}")
    return svg.inline(height, title)


def interval_chart(title: str, bars: Sequence[Bar], *, axis: str) -> Markup:
    """Return a row for each value with its interval, on an axis with a mark at 0."""
    width, row, top, bottom = 520, 38, 26, 30
    bounds = [number for bar in bars for number in (*bar.interval, bar.value) if math.isfinite(number)]
    if not bounds:
        return Markup("")
    # 0 is always on the axis, because the question is whether an interval contains it
    low, high = min(0.0, *bounds), max(0.0, *bounds)
    margin = 0.06 * (high - low or 1.0)
    low, high = low - margin, high + margin
    end = top + row * len(bars)  # of the grid

    def at(value: float) -> float:
        return (value - low) / (high - low) * width

    svg = Svg(width)
    for tick in nice_ticks(low, high, 6):
        if low <= tick <= high:
            svg.line("grid" if tick else "zero", (at(tick), top - 8), (at(tick), end))
            svg.text("tick mid", at(tick), end + 16, f"{'+' if tick > 0 else ''}{formats.tick(tick)}")
    svg.text("tick", 0, 10, axis)
    for index, bar in enumerate(bars):
        y = top + row * index + 13
        svg.text("label", 0, y, bar.name)
        svg.text("label number end", width, y, bar.text)
        if all(map(math.isfinite, bar.interval)):
            start, stop = map(at, bar.interval)
            svg.line(f"range {bar.tone}", (start, y + 12), (stop, y + 12))
        if math.isfinite(bar.value):
            svg.circle(f"mean {bar.tone}", at(bar.value), y + 12, 5, title=f"{bar.name}: {bar.text}")
    return svg.inline(end + bottom, title)


def reliability_chart(title: str, bins: Sequence[tuple[float, float, int]], colour: int) -> Markup:
    """Return a reliability diagram: for each bin the mean probability, the share that was right, and its samples."""
    size, left, top, strip = 236, 34, 8, 34  # the strip below the diagram has a bar for each bin
    svg = Svg(left + size + 10)
    ticks = {share: f"{share:g}" for share in (0.0, 0.25, 0.5, 0.75, 1.0)}
    _add_square(svg, (left, top), size, ticks, top + size + strip, "predicted probability")
    shown = [
        (left + probability * size, top + (1 - right) * size, count, f"probability {probability:.3f}: {right:.3f}")
        for probability, right, count in bins
        if count
    ]
    svg.polyline(f"line c{colour}", [(x, y) for x, y, _, _ in shown])
    most = max((count for *_, count in bins), default=0)
    for x, y, count, text in shown:
        # The square root, so that rare bins are visible next to the bin of almost certain predictions.
        share, label = math.sqrt(count / most), f"{text} of {count:,} were right"
        svg.circle(f"dot c{colour}", x, y, 2.2 + 3.0 * share, title=label)
        bar = share * (strip - 8)
        svg.rect(f"fill c{colour}", x - 5, top + size + strip - bar, 10, bar, 0, title=label)
    return svg.inline(top + size + strip + 40, title)


def scatter_chart(title: str, points: Sequence[Point], colour: int) -> Markup:
    """Return a scatter plot of predicted over true numbers, with the line on which they are equal."""
    size, left, top = 252, 48, 10
    finite = [value for point in points for value in point if math.isfinite(value)]
    if not finite:
        return Markup("")
    ticks = nice_ticks(min(finite), max(finite))
    low, high = min(ticks[0], *finite), max(ticks[-1], *finite)
    span = high - low or 1.0
    svg = Svg(left + size + 10)
    texts = {(tick - low) / span: formats.tick(tick) for tick in ticks}
    _add_square(svg, (left, top), size, texts, top + size, "true value")
    for true, predicted in points:
        if math.isfinite(true) and math.isfinite(predicted):
            x, y = left + (true - low) / span * size, top + (1 - (predicted - low) / span) * size
            svg.circle(f"spot c{colour}", x, y, 2.5)
    return svg.inline(top + size + 40, title)


def _add_square(svg: Svg, corner: Point, size: float, ticks: Mapping[float, str], bottom: float, axis: str) -> None:
    """Add a square with the same scale on both axes, and its diagonal.

    corner: the upper left one. ticks: texts by their share of the scale. bottom: the height below which the horizontal
    axis has its texts. axis: the name of the horizontal axis.
    """
    left, top = corner
    for share, text in ticks.items():
        x, y = left + share * size, top + (1 - share) * size
        svg.line("grid", (left, y), (left + size, y))
        svg.text("tick end", left - 6, y + 3.5, text)
        svg.text("tick mid", x, bottom + 16, text)
    svg.text("tick mid", left + size / 2, bottom + 34, axis)
    svg.line("zero dashed", (left, top + size), (left + size, top))


def heat_map(title: str, values: Sequence[Sequence[float]], *, rows: Sequence[str], columns: Sequence[str]) -> Markup:
    """Return cells coloured by values in [0, 1], with the highest value of each row outlined; NaN stays empty.

    With few columns, cells show their values as text; otherwise they show them as tooltips.
    """
    # Layers with long paths differ at the end.
    row_names, column_names = (
        [name if len(name) <= _LONGEST_NAME else f"\N{HORIZONTAL ELLIPSIS}{name[1 - _LONGEST_NAME :]}" for name in side]
        for side in (rows, columns)
    )
    has_texts = len(columns) <= _WRITTEN
    width, height = (44, 28) if has_texts else (22, 22)  # of a cell
    # Characters of this size are about 6.2 wide. The names of columns are written vertically above them.
    left, top = (round(6.2 * max(map(len, side), default=0)) + 12 for side in (row_names, column_names))
    svg = Svg(left + width * len(columns) + 2)
    for column, name in enumerate(column_names):
        svg.upward_text("tick", left + width * (column + 0.5) + 4, top - 6, name, title=columns[column])
    outlines = []
    for row, name in enumerate(row_names):
        y = top + height * row
        svg.text("tick end", left - 8, y + height / 2 + 4, name, title=rows[row])
        shown = [value if math.isfinite(value) else -math.inf for value in values[row]]
        best = max(range(len(shown)), key=shown.__getitem__, default=0)
        for column, value in enumerate(values[row]):
            x = left + width * column
            box, label = (x + 1, y + 1, width - 2, height - 2, 3), f"{rows[row]}, {columns[column]}"
            if not math.isfinite(value):
                svg.rect("blank", *box, title=f"{label}: undefined")
                continue
            share = min(1.0, max(0.0, value))  # an estimate may leave [0, 1]
            highest = ", the highest" if column == best else ""
            svg.rect("heat", *box, title=f"{label}: {value:.3f}{highest}", share=f"{share:.3f}")
            if column == best:
                outlines.append(box)
            if has_texts:
                tone = " high" if share > 0.67 else " middle" if share > 0.5 else ""
                svg.text(f"value mid{tone}", x + width / 2, y + height / 2 + 4, f"{share:.2f}")
    for box in outlines:  # last, because later elements are drawn on top
        svg.rect("outline", *box)
    return svg.inline(top + height * len(rows) + 2, title, kind="chart wide")


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about `count` round numbers that cover a range, with zero as exactly 0.0."""
    if not high > low:
        return [low]
    # the largest of 1, 2, 2.5, 5 and 10 times a power of ten that gives enough ticks
    step = 10 ** math.floor(math.log10((high - low) / count))
    step = next(step * factor for factor in (1, 2, 2.5, 5, 10) if (high - low) / (step * factor) <= count)
    # the small numbers absorb rounding errors of the division, so that no tick is added beyond a round end
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") + 0.0 for index in range(first, last + 1)]
