"""Charts as inline SVG. Texts are real texts, and colours are variables of the page, so that they follow its theme."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from kdkit.report import formats
from kdkit.utils.printable import printable

Point = tuple[float, float]

_HOVERED = 120  # most points of a series that show their value; more would overlap
_WRITTEN = 10  # most columns of a heat map that shows its values as text
_LONGEST_NAME = 24  # characters of the name of a row or column
_COLOURS = 6  # of series, defined in the style sheet


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
    span = f"{formats.signed(low, points=points)} to {formats.signed(high, points=points)}"
    return Bar(
        name=name,
        value=scale * value,
        interval=(scale * low, scale * high),
        text=f"{formats.signed(value, points=points)} ({span})",
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

    parts = [_open(width, height, title)]
    for tick in ticks:
        if low <= tick <= high:
            y = at(first, tick)[1]
            parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick end" x="{left - 8}" y="{y + 3.5:.1f}">{formats.tick(tick)}</text>')
    for tick in dict.fromkeys(round(tick) for tick in nice_ticks(first, last, 6)):
        if first <= tick <= last:
            x = at(tick, low)[0]
            parts.append(f'<text class="tick mid" x="{x:.1f}" y="{height - bottom + 16}">{tick}</text>')
    parts.append(f'<text class="tick end" x="{width - right}" y="{height - 3}">epoch</text>')
    for line in series:
        shown = [(x, y, *at(x, y)) for x, y in line.points if math.isfinite(y)]
        colour = line.colour % _COLOURS
        path = " ".join(f"{px:.1f},{py:.1f}" for _, _, px, py in shown)
        parts.append(f'<polyline class="line c{colour}" points="{path}"/>')
        for x, y, px, py in shown:
            is_marked = x == line.marked
            if is_marked:
                parts.append(f'<circle class="dot c{colour}" cx="{px:.1f}" cy="{py:.1f}" r="4"/>')
            # A wide transparent circle: browsers show its title when the mouse is near the point.
            if is_marked or len(shown) <= _HOVERED:
                best = ", kept" if is_marked else ""
                label = _text(f"{line.name}, epoch {x:g}: {y:.4g}{best}")
                parts.append(f'<circle class="hit" cx="{px:.1f}" cy="{py:.1f}" r="6"><title>{label}</title></circle>')
    return Markup("".join([*parts, "</svg>"]))


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
    height = top + row * len(bars) + bottom

    def at(value: float) -> float:
        return (value - low) / (high - low) * width

    parts = [_open(width, height, title)]
    bottom_line = top + row * len(bars)
    for tick in nice_ticks(low, high, 6):
        if low <= tick <= high:
            x = at(tick)
            kind = "zero" if tick == 0 else "grid"
            parts.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 8}" y2="{bottom_line}"/>')
            sign = "+" if tick > 0 else ""
            parts.append(f'<text class="tick mid" x="{x:.1f}" y="{bottom_line + 16}">{sign}{formats.tick(tick)}</text>')
    parts.append(f'<text class="tick" x="0" y="10">{_text(axis)}</text>')
    for index, bar in enumerate(bars):
        y = top + row * index + 12
        parts.append(f'<text class="label" x="0" y="{y + 1}">{_text(bar.name)}</text>')
        parts.append(f'<text class="label number end" x="{width}" y="{y + 1}">{_text(bar.text)}</text>')
        tone = f" {bar.tone}" if bar.tone else ""
        if all(map(math.isfinite, bar.interval)):
            x1, x2 = (at(bound) for bound in bar.interval)
            parts.append(f'<line class="range{tone}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y + 13}" y2="{y + 13}"/>')
        if math.isfinite(bar.value):
            label = _text(f"{bar.name}: {bar.text}")
            parts.append(
                f'<circle class="mean{tone}" cx="{at(bar.value):.1f}" cy="{y + 13}" r="5"><title>{label}</title>'
                "</circle>"
            )
    return Markup("".join([*parts, "</svg>"]))


def reliability_chart(title: str, bins: Sequence[tuple[float, float, int]], colour: int) -> Markup:
    """Return a reliability diagram: for each bin the mean probability, the share that was right, and its samples."""
    size, left, top, strip = 236, 34, 8, 34
    width, height = left + size + 10, top + size + strip + 40
    most = max((count for *_, count in bins), default=0)
    parts = [_open(width, height, title)]

    def at(x: float, y: float) -> Point:
        return left + x * size, top + (1 - y) * size

    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = at(tick, tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{left + size}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{left - 6}" y="{y + 3.5:.1f}">{tick:g}</text>')
        parts.append(f'<text class="tick mid" x="{x:.1f}" y="{height - 22}">{tick:g}</text>')
    parts.append(f'<text class="tick mid" x="{left + size / 2:.1f}" y="{height - 4}">predicted probability</text>')
    parts.append(f'<line class="zero dashed" x1="{left}" y1="{top + size}" x2="{left + size}" y2="{top}"/>')
    shown = [(probability, right, count) for probability, right, count in bins if count]
    path = " ".join("{:.1f},{:.1f}".format(*at(probability, right)) for probability, right, _ in shown)
    parts.append(f'<polyline class="line c{colour % _COLOURS}" points="{path}"/>')
    for probability, right, count in shown:
        x, y = at(probability, right)
        radius = 2.2 + 3.0 * math.sqrt(count / most)
        label = _text(f"probability {probability:.3f}: {right:.3f} of {count:,} were right")
        parts.append(
            f'<circle class="dot c{colour % _COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{label}'
            "</title></circle>"
        )
        # The square root, so that rare bins are visible next to the bin of almost certain predictions.
        bar = math.sqrt(count / most) * (strip - 8)
        parts.append(
            f'<rect class="fill c{colour % _COLOURS}" x="{x - 5:.1f}" y="{top + size + strip - bar:.1f}" width="10" '
            f'height="{bar:.1f}"><title>{label}</title></rect>'
        )
    return Markup("".join([*parts, "</svg>"]))


def scatter_chart(title: str, points: Sequence[Point], colour: int) -> Markup:
    """Return a scatter plot of predicted over true numbers, with the line on which they are equal."""
    size, left, top = 252, 48, 10
    finite = [value for point in points for value in point if math.isfinite(value)]
    if not finite:
        return Markup("")
    ticks = nice_ticks(min(finite), max(finite))
    low, high = min(ticks[0], *finite), max(ticks[-1], *finite)
    span = high - low or 1.0
    parts = [_open(left + size + 10, top + size + 40, title)]
    for tick in ticks:
        share = (tick - low) / span
        x, y = left + share * size, top + (1 - share) * size
        parts.append(f'<line class="grid" x1="{left}" x2="{left + size}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{left - 6}" y="{y + 3.5:.1f}">{formats.tick(tick)}</text>')
        parts.append(f'<text class="tick mid" x="{x:.1f}" y="{top + size + 16}">{formats.tick(tick)}</text>')
    parts.append(f'<text class="tick mid" x="{left + size / 2:.1f}" y="{top + size + 34}">true value</text>')
    parts.append(f'<line class="zero dashed" x1="{left}" y1="{top + size}" x2="{left + size}" y2="{top}"/>')
    for true, predicted in points:
        if math.isfinite(true) and math.isfinite(predicted):
            x, y = left + (true - low) / span * size, top + (1 - (predicted - low) / span) * size
            parts.append(f'<circle class="spot c{colour % _COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>')
    return Markup("".join([*parts, "</svg>"]))


def heat_map(title: str, values: Sequence[Sequence[float]], *, rows: Sequence[str], columns: Sequence[str]) -> Markup:
    """Return cells coloured by values in [0, 1], with the highest value of each row outlined; NaN stays empty.

    With few columns, cells show their values as text; otherwise they show them as tooltips.
    """
    # Layers with long paths differ at the end.
    names = [
        [name if len(name) <= _LONGEST_NAME else f"\N{HORIZONTAL ELLIPSIS}{name[1 - _LONGEST_NAME :]}" for name in side]
        for side in (rows, columns)
    ]
    has_texts = len(columns) <= _WRITTEN
    width, height = (44, 28) if has_texts else (22, 22)  # of a cell
    # Characters of this size are about 6.2 wide. The names of columns are written vertically above them.
    left, top = (round(6.2 * max(map(len, side), default=0)) + 12 for side in names)
    # Later elements are drawn on top, so the outlines come last.
    parts = [_open(left + width * len(columns) + 2, top + height * len(rows) + 2, title, kind="chart wide")]
    for column, name in enumerate(names[1]):
        x = left + width * (column + 0.5) + 4
        parts.append(
            f'<text class="tick" transform="translate({x:g} {top - 6}) rotate(-90)">{_text(name)}'
            f"<title>{_text(columns[column])}</title></text>"
        )
    outlines = []
    for row, name in enumerate(names[0]):
        y = top + height * row
        parts.append(
            f'<text class="tick end" x="{left - 8}" y="{y + height / 2 + 4:g}">{_text(name)}'
            f"<title>{_text(rows[row])}</title></text>"
        )
        shown = [value if math.isfinite(value) else -math.inf for value in values[row]]
        best = max(range(len(shown)), key=shown.__getitem__, default=0)
        for column, value in enumerate(values[row]):
            x = left + width * column
            box = f'x="{x + 1}" y="{y + 1}" width="{width - 2}" height="{height - 2}" rx="3"'
            if not math.isfinite(value):
                label = _text(f"{rows[row]}, {columns[column]}: undefined")
                parts.append(f'<rect class="blank" {box}><title>{label}</title></rect>')
                continue
            share = min(1.0, max(0.0, value))  # an estimate may leave [0, 1]
            label = _text(f"{rows[row]}, {columns[column]}: {value:.3f}{', the highest' if column == best else ''}")
            parts.append(f'<rect class="heat" style="--share:{share:.3f}" {box}><title>{label}</title></rect>')
            if column == best:
                outlines.append(f'<rect class="outline" {box}/>')
            if has_texts:
                tone = " high" if share > 0.67 else " middle" if share > 0.5 else ""
                parts.append(
                    f'<text class="value mid{tone}" x="{x + width / 2:g}" y="{y + height / 2 + 4:g}">{share:.2f}</text>'
                )
    return Markup("".join([*parts, *outlines, "</svg>"]))


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


def _open(width: int, height: int, title: str, kind: str = "chart") -> str:
    label = _text(title)
    return f'<svg class="{kind}" viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{label}">'


def _text(text: str) -> str:
    return str(escape(printable(text)))
