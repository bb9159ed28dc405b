"""Draw the pictures of docs/concepts.md: docs/images/concept-*.svg.

    python tools/make_concept_pictures.py

The curves and bars are computed by kdkit and torch. The plans on that page are drawn by make_plan_pictures.py.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from kdkit import CosineRamp, LinearRamp
from kdkit.report.svg import Point, Svg

IMAGES = Path(__file__).parents[1] / "docs" / "images"
TEACHER, STUDENT, LABELS, CACHE = "c1", "c0", "c4", "c2"
_WIDTH = 1000.0


def picture(name: str) -> str:
    """Return a picture as the text of its file."""
    return PICTURES[name]()


def step() -> str:
    """Draw a training step: both networks, the tensors that are compared, and the sum of the terms."""
    svg = Svg(_WIDTH)
    svg.fitted_text("title", 20, 32, "One training step", size=17, width=600)
    rows = {TEACHER: 64.0, STUDENT: 330.0}
    for colour, y in rows.items():
        name, trained = ("teacher", "frozen, no gradient") if colour == TEACHER else ("student", "trained")
        svg.rect("card", 190, y, 500, 106, 12)
        svg.fitted_text("strong", 206, y + 23, name, size=13, width=200)
        svg.fitted_text("end", 674, y + 23, trained, size=12, width=220)
        for x, text in ((206, "layers"), (374, "layers"), (542, "classifier")):
            _box(svg, (x, y + 38), (132, 50), text, "", colour)
        for x in (338, 506):
            _right(svg, colour, [(x, y + 63), (x + 36, y + 63)])
        _right(svg, LABELS, [(140, 250), (165, 250), (165, y + 63), (206, y + 63)])
    _box(svg, (20, 222), (120, 56), "batch", "inputs, labels", LABELS)
    # Terms stand between the tensors that they compare.
    _box(svg, (374, 222), (132, 56), "Match", "Hint(), on taps", CACHE)
    _box(svg, (542, 222), (132, 56), "Match", "SoftTargets()", CACHE)
    _box(svg, (720, 365), (132, 56), "Truth", "on the labels", CACHE)
    for x, text in ((440, "tap"), (608, "outputs")):
        _vertical(svg, TEACHER, x, 152, 222)
        svg.fitted_text("note", x + 8, 196, text, size=12, width=70)
        _vertical(svg, STUDENT, x, 368, 278)
    svg.rect("box", 400, 296, 80, 24, 6)
    svg.fitted_text("note", 410, 312, "projector", size=12, width=80)
    svg.fitted_text("note", 616, 312, "outputs", size=12, width=70)
    _right(svg, STUDENT, [(674, 393), (720, 393)])
    _right(svg, LABELS, [(80, 278), (80, 468), (786, 468), (786, 426)], head=False)
    svg.path(f"fill {LABELS}", [(781.5, 430), (790.5, 430), (786, 421)])
    svg.fitted_text("note", 90, 460, "labels", size=12, width=80)
    _box(svg, (868, 222), (116, 56), "loss", "of all terms", LABELS)
    svg.path(f"rail {CACHE}", [(506, 236), (524, 236), (524, 208), (700, 208), (700, 240), (862, 240)], radius=6)
    svg.head(f"fill {CACHE}", 868, 240)
    _right(svg, CACHE, [(674, 260), (868, 260)])
    svg.path(f"rail {CACHE}", [(852, 393), (926, 393), (926, 284)], radius=6)
    svg.path(f"fill {CACHE}", [(921.5, 287), (930.5, 287), (926, 278)])
    return svg.file(484, "One training step: teacher and student run on a batch, and terms compare their tensors")


def softening() -> str:
    """Draw the probabilities of one sample at three temperatures."""
    logits, classes = torch.tensor([7.0, 4.0, 1.0, -1.0]), ("wolf", "dog", "cat", "car")
    svg = Svg(_WIDTH)
    svg.fitted_text("title", 20, 32, "The teacher's probabilities for one picture of a wolf", size=17, width=700)
    for column, temperature in enumerate((1.0, 2.0, 4.0)):
        left = 20 + column * 325
        svg.rect("card", left, 52, 310, 168, 12)
        svg.fitted_text("strong", left + 18, 78, f"temperature {temperature:g}", size=13, width=200)
        for row, (name, share) in enumerate(zip(classes, (logits / temperature).softmax(0).tolist(), strict=True)):
            y = 94 + row * 30
            svg.fitted_text("note", left + 18, y + 14, name, size=12, width=60)
            svg.rect(f"fill {TEACHER}", left + 70, y, max(1.0, 170 * share), 20, 3)
            svg.fitted_text("end", left + 292, y + 14, f"{share:.1%}", size=12, width=60)
    return svg.file(236, "Softmax of the same logits at temperatures 1, 2 and 4")


def cache() -> str:
    """Draw when a frozen teacher runs, and when its outputs are read."""
    svg = Svg(_WIDTH)
    svg.fitted_text("title", 20, 32, "A frozen teacher runs once for each sample", size=17, width=700)
    for column, (title, runs) in enumerate((("epoch 1", True), ("epoch 2 and later, and other runs", False))):
        left = 20 + column * 490
        svg.rect("card", left, 52, 470, 178, 12)
        svg.fitted_text("strong", left + 18, 78, title, size=13, width=400)
        _box(
            svg, (left + 18, 94), (140, 52), "teacher", "runs" if runs else "does not run", TEACHER if runs else LABELS
        )
        _box(svg, (left + 18, 164), (140, 52), "cache", "on the disk", CACHE)
        _box(svg, (left + 312, 128), (140, 56), "term", "of the student", STUDENT)
        if runs:
            _right(svg, TEACHER, [(left + 158, 120), (left + 182, 120), (left + 182, 150), (left + 312, 150)])
            _vertical(svg, TEACHER, left + 88, 146, 164)
            svg.fitted_text("note", left + 192, 144, "outputs", size=12, width=118)
        else:
            _right(svg, CACHE, [(left + 158, 190), (left + 182, 190), (left + 182, 162), (left + 312, 162)])
            svg.fitted_text("note", left + 192, 156, "the same outputs", size=12, width=122)
    return svg.file(246, "The teacher runs in the first epoch, and its outputs are read from the cache afterwards")


def ramps() -> str:
    """Draw weights of terms over the progress of a stage."""
    curves: list[tuple[str, str, Callable[[float], float]]] = [
        ("0.3", LABELS, lambda progress: 0.3),
        ("LinearRamp(start=1, end=0, until=0.5)", TEACHER, LinearRamp(start=1, end=0, until=0.5)),
        ("CosineRamp(start=0, end=0.7)", STUDENT, CosineRamp(start=0, end=0.7)),
    ]
    svg = Svg(_WIDTH)
    svg.fitted_text("title", 20, 32, "Weights of three terms over a stage", size=17, width=600)
    left, right, top, bottom = 60.0, 640.0, 60.0, 250.0
    svg.rect("card", left, top, right - left, bottom - top, 6)
    for value in (0.0, 0.5, 1.0):
        y = bottom - (bottom - top) * value
        svg.fitted_text("end", left - 8, y + 4, f"{value:g}", size=12, width=40)
        svg.fitted_text("note", left + (right - left) * value - 8, bottom + 18, f"{value:g}", size=12, width=40)
    svg.fitted_text("note", left + 0.66 * (right - left), bottom + 18, "progress of the stage", size=12, width=200)
    for row, (label, colour, factor) in enumerate(curves):
        points = [(step / 60, factor(step / 60)) for step in range(61)]
        svg.path(f"line {colour}", [(left + (right - left) * x, bottom - (bottom - top) * y) for x, y in points])
        svg.rect(f"fill {colour}", 668, 92 + row * 34, 16, 4, 2)
        svg.fitted_text("strong", 694, 99 + row * 34, label, size=13, width=300)
    return svg.file(284, "Weights of terms that are constant, fall linearly, and rise along a cosine")


PICTURES: dict[str, Callable[[], str]] = {
    "concept-step": step,
    "concept-softening": softening,
    "concept-cache": cache,
    "concept-ramps": ramps,
}


def _box(svg: Svg, place: Point, size: Point, name: str, fact: str, colour: str) -> None:
    (x, y), (width, height) = place, size
    svg.rect("box", x, y, width, height, 8)
    svg.rect(f"fill {colour}", x + 8, y + 10, 4, height - 20, 2)
    middle = y + height / 2 + (-3 if fact else 5)
    svg.fitted_text("name", x + 22, middle, name, size=14, width=width - 26)
    svg.fitted_text("fact", x + 22, middle + 17, fact, size=12, width=width - 24)


def _right(svg: Svg, colour: str, points: list[Point], *, head: bool = True) -> None:
    """Draw a line that ends in an arrow to the right."""
    *others, (x, y) = points
    svg.path(f"rail {colour}", [*others, (x - 5, y) if head else (x, y)], radius=6)
    if head:
        svg.head(f"fill {colour}", x - 1, y)


def _vertical(svg: Svg, colour: str, x: float, start: float, end: float) -> None:
    """Draw an arrow down, or up if it ends above its start."""
    back = -9 if end > start else 9
    svg.path(f"rail {colour}", [(x, start), (x, end + back / 2)])
    svg.path(f"fill {colour}", [(x - 4.5, end + back), (x + 4.5, end + back), (x, end)])


def main() -> None:
    """Write all pictures."""
    for name in PICTURES:
        (IMAGES / f"{name}.svg").write_text(picture(name), "utf-8")


if __name__ == "__main__":
    main()
