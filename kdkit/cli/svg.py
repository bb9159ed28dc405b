"""Write an SVG picture: rectangles, lines and texts that are cut to a width, in the colours of reports."""

import unicodedata
from collections.abc import Sequence
from importlib import resources

from markupsafe import escape

from kdkit.utils.printable import printable

Point = tuple[float, float]

COLOURS = 6  # of the palette, as classes c0 to c5
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
_STYLE = """
text { font: 12px/1 Inter, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial,
  sans-serif; fill: var(--muted); font-variant-numeric: tabular-nums; }
.title { font-size: 17px; font-weight: 620; fill: var(--ink); }
.name { font-size: 14px; font-weight: 600; fill: var(--ink); }
.strong { font-size: 13px; font-weight: 600; fill: var(--ink); }
.problem { fill: var(--worse); }
.end { text-anchor: end; }
.paper { fill: var(--paper); } .card { fill: var(--raised); }
.box { fill: var(--paper); stroke: var(--line); }
.line { fill: none; stroke-width: 1.75; stroke-linejoin: round; }
.rail { fill: none; stroke-width: 1.5; }
"""


class Svg:
    """A picture. Its elements are drawn in the order in which they are added."""

    def __init__(self, width: float) -> None:
        self.width = width
        self._parts: list[str] = []

    def rect(self, kind: str, x: float, y: float, width: float, height: float, radius: float) -> None:
        """Add a rectangle. kind: its CSS classes, as for all elements."""
        size = f'width="{width:g}" height="{height:g}" rx="{radius:g}"'
        self._parts.append(f'<rect class="{kind}" x="{x:g}" y="{y:g}" {size}/>')

    def text(self, kind: str, x: float, y: float, text: str, *, size: float, width: float) -> float:
        """Add a text of at most this width, and return its estimated width. size: the font size, in pixels.

        If the text is cut, a tooltip shows all of it.
        """
        if not text:
            return 0.0
        whole = printable(text)
        shown = fitting(whole, size, width)
        title = f"<title>{escape(whole)}</title>" if shown != whole else ""
        self._parts.append(f'<text class="{kind}" x="{x:g}" y="{y:g}">{title}{escape(shown)}</text>')
        return text_width(shown, size)

    def path(self, kind: str, points: Sequence[Point], *, radius: float = 0) -> None:
        """Add a line through points, with round corners."""
        steps = [f"M{points[0][0]:g} {points[0][1]:g}"]
        for before, corner, after in zip(points, points[1:], points[2:], strict=False):
            start, end = _towards(corner, before, radius), _towards(corner, after, radius)
            steps.append(f"L{start[0]:g} {start[1]:g}Q{corner[0]:g} {corner[1]:g} {end[0]:g} {end[1]:g}")
        steps.append(f"L{points[-1][0]:g} {points[-1][1]:g}")
        self._parts.append(f'<path class="{kind}" d="{"".join(steps)}"/>')

    def head(self, kind: str, x: float, y: float) -> None:
        """Add the head of an arrow to the right, with its tip at this point."""
        self._parts.append(f'<path class="{kind}" d="M{x:g} {y:g}l-9 -4.5v9z"/>')

    def begin_group(self, kind: str) -> None:
        """Begin a group of elements."""
        self._parts.append(f'<g class="{kind}">')

    def end_group(self) -> None:
        """End a group of elements."""
        self._parts.append("</g>")

    def render(self, height: float, title: str) -> str:
        """Return the picture as the text of a file, in the light or dark colours of the system."""
        palette = resources.files("kdkit.report").joinpath("palette.css").read_text("utf-8")
        colours = "".join(
            f".line.c{index}, .rail.c{index} {{ stroke: var(--c{index}); }}\n"
            f".fill.c{index} {{ fill: var(--c{index}); }}\n"
            for index in range(COLOURS)
        )
        label = escape(printable(title))
        size = f'width="{self.width:g}" height="{height:g}"'
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:g} {height:g}" {size} role="img" '
            f'aria-label="{label}">',
            f"<style>\n{palette}{_STYLE}{colours}</style>",
            f'<rect class="paper" {size}/>',
            *self._parts,
            "</svg>\n",
        ]
        return "\n".join(lines)


def fitting(text: str, size: float, width: float) -> str:
    """Return a text, cut at its end if its estimated width is larger than this width."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + _ELLIPSIS, size) > width:
        text = text[:-1]
    return text.rstrip(" ,(") + _ELLIPSIS


def text_width(text: str, size: float) -> float:
    """Return an upper bound of the width of a text in common sans-serif fonts; the viewer's font is unknown."""
    return sum(map(_em, text)) * size


def _em(character: str) -> float:
    """Return the width of a character, relative to the font size, in DejaVu Sans, the widest common font."""
    if unicodedata.east_asian_width(character) in "WF":
        return 1.35 if ord(character) > 0xFFFF else 1.05  # emoji are the widest
    if character in "ijlI.,:;|'![] ":
        return 0.38
    if character in "frt()/-":
        return 0.44
    if character in "mwMW@%" + _ELLIPSIS:
        return 1.02
    return 0.78 if character.isupper() or not character.isascii() else 0.66


def _towards(corner: Point, end: Point, radius: float) -> Point:
    """Return the point on the way from a corner to another point, at a distance that fits between the two."""
    dx, dy = end[0] - corner[0], end[1] - corner[1]
    length = abs(dx) + abs(dy)  # of a horizontal or vertical line
    share = min(radius, length / 2) / length if length else 0.0
    return corner[0] + dx * share, corner[1] + dy * share
