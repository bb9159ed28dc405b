"""Draw the plan of a recipe for `kdkit check --svg`: a card for each stage, with an arrow for each term.

In a card, sources are on the left and students on the right. Outside of the cards, lines lead from each student to the
later stages in which it teaches.
"""

from kdkit.cli.plan import describe_projector, describe_weight
from kdkit.cli.plan_graph import LABELS, Box, Lesson, Source, StageGraph, stage_graphs
from kdkit.engine.check.plan import Plan, TermSummary
from kdkit.report.svg import COLOURS, Point, Svg, text_width
from kdkit.utils.reprs import describe_count

_WIDTH = 1000.0
_BOX = 216.0  # width of a box
_PADDING, _GAP, _HEAD = 18.0, 12.0, 40.0  # padding of a card, gap between boxes, height of a card's title
_LINE, _TOP = 17.0, 25.0  # height of a line of text in a box, and of its first one
_ARROW, _PROJECTOR = 54.0, 17.0  # height of an arrow with its texts, and of each projector below it
_RAIL, _MARGIN = 9.0, 90.0  # between parallel lines outside of the cards, and at most for all of them on a side
_LABELS = 4  # the colour of labels, a grey; nets have the others


def draw_plan(plan: Plan, title: str) -> str:
    """Return the drawing as the text of an SVG file."""
    return _Drawing(plan, title).draw()


class _Drawing:
    def __init__(self, plan: Plan, title: str) -> None:
        self.plan, self.title = plan, title
        self.graphs = stage_graphs(plan)
        # The last network has the first colour, like students in reports.
        others = [index for index in range(1, COLOURS) if index != _LABELS]
        names = [net.name for net in plan.nets]
        self.colours = {name: others[index % len(others)] for index, name in enumerate(names)}
        self.colours.update(dict.fromkeys(names[-1:], 0))
        # Each net that teaches after its training has its own line outside of the cards.
        sources = [source for graph in self.graphs for lesson in graph.lessons for source in lesson.sources]
        self.rails = [*dict.fromkeys(rail for source in sources for rail in source.trained)]
        self.rail_step = min(_RAIL, _MARGIN / max(len(self.rails), 1))
        margin = 14.0 + self.rail_step * len(self.rails) + (6.0 if self.rails else 0.0)
        self.left, self.right = margin, _WIDTH - margin
        self.svg = Svg(_WIDTH)
        self.students: dict[tuple[int, str], Point] = {}  # the points at which lines leave, by stage and net
        self.exits: dict[int, float] = {}  # the height below the card of each stage at which lines begin
        # The stage that trained a source, its net, and the point at which a line ends.
        self.entries: list[tuple[int, str, Point]] = []

    def draw(self) -> str:
        self.svg.fitted_text("title", self.left, 32, self.title, size=17, width=600)
        facts = f"{describe_count(len(self.graphs), 'stage')}, {describe_count(len(self.plan.nets), 'net')}"
        self.svg.fitted_text("end", self.right, 32, facts, size=12, width=200)
        y = 52.0
        for index, graph in enumerate(self.graphs):
            y = self._card(index, graph, y)
            self.exits[index] = y
            y += 16.0 + self.rail_step * sum(rail[0] == index for rail in self.rails)
        self._draw_rails()
        notes = [("note", "Shapes are from the few samples of the check.")]
        if self.rails:
            text = "Lines outside of the stages: a net that is trained above is a frozen teacher below."
            notes.insert(0, ("note", text))
        if self.plan.problems:
            notes.append(("problem", f"Problems: {len(self.plan.problems)}; kdkit check lists them."))
        for kind, note in notes:
            self.svg.fitted_text(kind, self.left, y + 8, note, size=12, width=self.right - self.left)
            y += 20
        return self.svg.file(y + 4, f"The plan of {self.title}")

    def _card(self, index: int, graph: StageGraph, top: float) -> float:
        """Draw a stage, and return the height at which it ends."""
        heights = [max(_box_height(lesson.student), _sources_height(lesson)) for lesson in graph.lessons]
        height = _HEAD + sum(heights) + _GAP * (len(heights) - 1) + _PADDING
        inner = self.right - self.left - 2 * _PADDING
        self.svg.rect("card", self.left, top, self.right - self.left, height, 12)
        title = f"{index + 1}  {graph.name}"
        shown = self.svg.fitted_text("name", self.left + _PADDING, top + 26, title, size=14, width=inner * 0.4)
        facts_width = inner - shown - 20
        self.svg.fitted_text("end", self.right - _PADDING, top + 26, graph.facts, size=12, width=facts_width)
        y = top + _HEAD
        for lesson, lesson_height in zip(graph.lessons, heights, strict=True):
            self._lesson(index, lesson, y, lesson_height)
            y += lesson_height + _GAP
        return top + height

    def _lesson(self, index: int, lesson: Lesson, top: float, height: float) -> None:
        """Draw a student, and its sources with their arrows."""
        left, right = self.left + _PADDING, self.right - _PADDING - _BOX
        self._box(lesson.student, right, top, height)
        self.students[index, lesson.student.name] = (right + _BOX, top + height / 2)
        if not lesson.sources:
            text = "not run, because of a problem"
            self.svg.fitted_text("problem end", right - 14, top + height / 2 + 4, text, size=12, width=300)
        y = top
        # If a student is higher than its sources, they are stretched.
        stretch = (height - _sources_height(lesson)) / max(len(lesson.sources), 1)
        for source in lesson.sources:
            source_height = _source_height(source) + stretch
            self._box(source.box, left, y, source_height)
            for number, (stage, net) in enumerate(source.trained, start=1):
                end = (left, y + source_height * number / (len(source.trained) + 1))
                self.entries.append((stage, net, end))
            arrow_top = y + (source_height - sum(map(_arrow_height, source.terms))) / 2
            for term in source.terms:
                self._arrow(term, self._colour(source.box), (left + _BOX, right), arrow_top)
                arrow_top += _arrow_height(term)
            y += source_height + _GAP

    def _box(self, box: Box, x: float, y: float, height: float) -> None:
        svg = self.svg
        svg.begin_group("node")
        svg.rect("box", x, y, _BOX, height, 8)
        svg.rect(f"fill c{self._colour(box)}", x + 10, y + 12, 4, height - 24, 2)
        # Centered, because a student is as high as all of its sources.
        first = y + (height - _box_height(box)) / 2 + _TOP
        svg.fitted_text("name", x + 26, first, box.name, size=14, width=_BOX - 36)
        for number, line in enumerate(box.lines, start=1):
            svg.fitted_text("fact", x + 26, first + 1 + _LINE * number, line, size=12, width=_BOX - 36)
        svg.end_group()

    def _arrow(self, term: TermSummary, colour: int, ends: tuple[float, float], top: float) -> None:
        """Draw a term: the loss with its weight, and the tensors of the source and of the student that it compares."""
        svg, (start, end), y = self.svg, ends, top + 27
        width = end - start - 28
        svg.begin_group("term")
        weight = f"{describe_weight(term)} \N{MULTIPLICATION SIGN} "
        name, _, options = term.loss.partition("(")
        used = svg.fitted_text("strong", start + 14, y - 9, weight + name, size=13, width=width)
        svg.fitted_text(
            "end", end - 14, y - 9, _leading(options.removesuffix(")"), width - used - 14), size=12, width=width
        )
        svg.path(f"line c{colour}", [(start, y), (end - 5, y)])
        svg.head(f"fill c{colour}", end - 1, y)
        half = (width - 12) / 2
        target = term.target.removeprefix(f"{LABELS} ") if term.teacher is None else term.target
        svg.fitted_text("side", start + 14, y + 16, target, size=12, width=half)
        svg.fitted_text("side end", end - 14, y + 16, term.student, size=12, width=half)
        for number, projector in enumerate(term.projectors, start=1):
            text = describe_projector(projector).replace("->", "\N{RIGHTWARDS ARROW}")
            svg.fitted_text("side end", end - 14, y + 16 + _PROJECTOR * number, text, size=12, width=width)
        svg.end_group()

    def _draw_rails(self) -> None:
        """Draw the lines from students to the stages they teach in: right, down below the card, left, down, right."""
        for number, (stage, net) in enumerate(self.rails):
            x, y = self.students[stage, net]
            below = sum(rail[0] == stage for rail in self.rails[:number])
            level = self.exits[stage] + 12 + self.rail_step * below
            outer_right, outer_left = self.right + 6 + self.rail_step * number, self.left - 6 - self.rail_step * number
            for trained_in, name, end in self.entries:
                if (trained_in, name) == (stage, net):
                    points = [(x, y), (outer_right, y), (outer_right, level), (outer_left, level)]
                    points += [(outer_left, end[1]), (end[0] - 5, end[1])]
                    self.svg.path(f"rail c{self.colours[net]}", points, radius=7)
                    self.svg.head(f"fill c{self.colours[net]}", end[0] - 1, end[1])

    def _colour(self, box: Box) -> int:
        return _LABELS if box.net is None else self.colours.get(box.net, _LABELS)


def _leading(options: str, width: float) -> str:
    """Return as many of the first options of a loss as fit; no option is cut, also if it has options itself."""
    while options and (text_width(options, 12) > width or options.count("(") > options.count(")")):
        options = options.rpartition(", ")[0]
    return options


def _sources_height(lesson: Lesson) -> float:
    return sum(map(_source_height, lesson.sources)) + _GAP * (len(lesson.sources) - 1)


def _source_height(source: Source) -> float:
    return max(_box_height(source.box), sum(map(_arrow_height, source.terms)))


def _arrow_height(term: TermSummary) -> float:
    return _ARROW + _PROJECTOR * len(term.projectors)


def _box_height(box: Box) -> float:
    return _TOP + _LINE * len(box.lines) + 16
