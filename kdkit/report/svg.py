"""Write SVG: lines, shapes and real texts, whose colours are in the style sheet around them, to follow its theme."""

import unicodedata
from collections.abc import Iterable, Sequence
from importlib import resources

from markupsafe import Markup, escape

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
    """A picture, whose elements are drawn in the order in which they are added.

    kind: the CSS classes of an element. title: its tooltip.
    """

    def __init__(self, width: float) -> None:
        self.width = width
        self._parts: list[str] = []

    def line(self, kind: str, start: Point, end: Point) -> None:
        """Add a straight line."""
        self._add("line", kind, x1=start[0], y1=start[1], x2=end[0], y2=end[1])

    def polyline(self, kind: str, points: Iterable[Point]) -> None:
        """Add a line through points."""
        self._add("polyline", kind, points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points))

    def path(self, kind: str, points: Sequence[Point], *, radius: float = 0) -> None:
        """Add a line through points, with round corners."""
        steps = [f"M{points[0][0]:g} {points[0][1]:g}"]
        for before, corner, after in zip(points, points[1:], points[2:], strict=False):
            start, end = _towards(corner, before, radius), _towards(corner, after, radius)
            steps.append(f"L{start[0]:g} {start[1]:g}Q{corner[0]:g} {corner[1]:g} {end[0]:g} {end[1]:g}")
        steps.append(f"L{points[-1][0]:g} {points[-1][1]:g}")
        self._add("path", kind, d="".join(steps))

    def head(self, kind: str, x: float, y: float) -> None:
        """Add the head of an arrow to the right, with its tip at this point."""
        self._add("path", kind, d=f"M{x:g} {y:g}l-9 -4.5v9z")

    def circle(self, kind: str, x: float, y: float, radius: float, *, title: str = "") -> None:
        """Add a circle."""
        self._add("circle", kind, title=title, cx=x, cy=y, r=radius)

    def rect(
        self, kind: str, x: float, y: float, width: float, height: float, radius: float, *, title: str = "", **css: str
    ) -> None:
        """Add a rectangle. css: values of CSS variables, such as share="0.5"."""
        style = ";".join(f"--{name}:{value}" for name, value in css.items())
        self._add("rect", kind, title=title, x=x, y=y, width=width, height=height, rx=radius, style=style)

    def text(self, kind: str, x: float, y: float, text: str, *, title: str = "") -> None:
        """Add a text. Its kind decides whether it begins, ends or is centered at this point."""
        self._add("text", kind, text, title=title, x=x, y=y)

    def upward_text(self, kind: str, x: float, y: float, text: str, *, title: str = "") -> None:
        """Add a text that is written from this point upwards."""
        self._add("text", kind, text, title=title, transform=f"translate({x:g} {y:g}) rotate(-90)")

    def fitted_text(self, kind: str, x: float, y: float, text: str, *, size: float, width: float) -> float:
        """Add a text of at most this width, and return its estimated width. size: the font size, in pixels.

        If the text is cut, a tooltip shows all of it.
        """
        whole = printable(text)
        shown = fitting(whole, size, width)
        if text:
            self.text(kind, x, y, shown, title=whole if shown != whole else "")
        return text_width(shown, size)

    def begin_group(self, kind: str) -> None:
        """Begin a group of elements."""
        self._parts.append(f'<g class="{kind}">')

    def end_group(self) -> None:
        """End a group of elements."""
        self._parts.append("</g>")

    def inline(self, height: float, title: str, *, kind: str = "chart") -> Markup:
        """Return the picture as an element of a page, which has its style."""
        attributes = f'class="{kind}" viewBox="0 0 {self.width:g} {height:g}" width="{self.width:g}"'
        start = f'<svg {attributes} role="img" aria-label="{_escaped(title)}">'
        return Markup("".join([start, *self._parts, "</svg>"]))

    def file(self, height: float, title: str) -> str:
        """Return the picture as the text of a file, in the light or dark colours of the system."""
        palette = resources.files(__package__).joinpath("palette.css").read_text("utf-8")
        colours = "".join(
            f".line.c{index}, .rail.c{index} {{ stroke: var(--c{index}); }}\n"
            f".fill.c{index} {{ fill: var(--c{index}); }}\n"
            for index in range(COLOURS)
        )
        size = f'width="{self.width:g}" height="{height:g}"'
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:g} {height:g}" {size} role="img" '
            f'aria-label="{_escaped(title)}">',
            f"<style>\n{palette}{_STYLE}{colours}</style>",
            f'<rect class="paper" {size}/>',
            *self._parts,
            "</svg>\n",
        ]
        return "\n".join(lines)

    def _add(self, element: str, kind: str, text: str = "", *, title: str = "", **attributes: float | str) -> None:
        texts = {name: value if isinstance(value, str) else f"{value:g}" for name, value in attributes.items()}
        values = "".join(f' {name}="{value}"' for name, value in texts.items() if value)
        content = (f"<title>{_escaped(title)}</title>" if title else "") + _escaped(text)
        end = f">{content}</{element}>" if content else "/>"
        self._parts.append(f'<{element} class="{kind}"{values}{end}')


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


def _escaped(text: str) -> str:
    return str(escape(printable(text)))
