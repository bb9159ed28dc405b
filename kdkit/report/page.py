"""The page of a report: the contents of its sections, rendered with a template."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from kdkit import __version__
from kdkit.errors import RecipeError, RunFolderError
from kdkit.plugins.manager import installed
from kdkit.report import classes, formats, measured, overview
from kdkit.report.combinations import combinations
from kdkit.report.runs import ReportedRun, read_runs
from kdkit.report.svg import COLOURS
from kdkit.report.training import training
from kdkit.report.verdict import Verdict, headline_of, verdicts_of
from kdkit.utils.files import require_output, write_output
from kdkit.utils.paths import user_path
from kdkit.utils.printable import LINE_CHARACTERS, printable
from kdkit.utils.reprs import describe_count, describe_names


@dataclass(frozen=True, slots=True)
class Section:
    """A section that a plugin adds to a report with the hook `report_sections`.

    title: of its tab. html: its content, which is inserted unchanged: escape everything that comes from data.
    Raises RecipeError if one of them is not a text.
    """

    title: str
    html: str

    def __post_init__(self) -> None:
        if not isinstance(self.title, str) or not isinstance(self.html, str):
            kinds = f"a {type(self.title).__name__} and a {type(self.html).__name__}"
            raise RecipeError(f"the title and the html of a Section must be texts; got {kinds}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The runs of a report, and the verdicts on them. The hook `report_sections` gets it.

    left_out: a sentence for each folder of several runs if some are unfinished or cannot be read. folders: those that
    the report is of.
    """

    runs: tuple[ReportedRun, ...]
    verdicts: tuple[Verdict, ...]
    left_out: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()

    def __repr__(self) -> str:
        runs = describe_names(run.label for run in self.runs)
        return (
            f"Report({describe_count(len(self.runs), 'run')}: {runs}; {describe_count(len(self.verdicts), 'verdict')})"
        )


def write_report(
    folders: str | Path | Sequence[str | Path], out: str | Path, *, average_over: str | Sequence[str] = ()
) -> Report:
    """Write the report of finished runs to a file, and return its contents.

    folders: one or several folders of runs, or of studies. average_over: options of the recipe whose values are
    repetitions, like seeds, such as the folds of a cross-validation.
    Raises RunFolderError if there is no folder, or one holds no finished run, RecipeError if no run has such an option,
    and KdkitError, before any run is read, if the file cannot be written.
    """
    out = user_path(out)
    require_output(out)
    paths = tuple(map(user_path, [folders] if isinstance(folders, str | Path) else folders))
    if not paths:
        raise RunFolderError("a report needs at least one folder of a run or of a study; got an empty list")
    runs, left_out = read_runs(paths)
    averaged = (average_over,) if isinstance(average_over, str) else average_over
    report = Report(runs=runs, verdicts=verdicts_of(runs, averaged), left_out=left_out, folders=paths)
    # Rendered in memory first, so that an error does not change an earlier page.
    write_output(out, render(report))
    return report


def render(report: Report) -> str:
    """Return the page of a report."""
    runs = report.runs
    style, palette, script = map(_text_of, ("style.css", "palette.css", "script.js"))
    names = dict.fromkeys(run.name for run in runs)
    return _template().render(
        style=Markup(palette + style),
        script=Markup(script),
        title=", ".join(names),
        version=__version__,
        several=len(runs) > 1,
        runs=runs,
        run_legend=[{"name": run.label, "colour": index % COLOURS} for index, run in enumerate(runs)],
        verdicts=report.verdicts,
        left_out=report.left_out,
        headline=headline_of(report.verdicts),
        combinations=combinations(report.folders, runs),
        difference_charts=overview.difference_charts(report.verdicts),
        nets=overview.net_table(runs, report.verdicts),
        stages=training(runs),
        agreement=overview.agreement_table(runs),
        calibration=overview.calibration(runs),
        classes=classes.class_tables(runs),
        errors=classes.errors(runs),
        cost=measured.cost(runs),
        layers=measured.layer_maps(runs),
        setup=overview.setup(runs),
        exports=measured.exports(runs),
        added=_added_sections(report),
        dash=formats.DASH,
    )


@cache  # to compile it takes longer than to render it
def _template() -> Template:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,  # a typo in the template raises an error
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    # An interval stays on one line.
    environment.filters["unbroken"] = lambda text: re.sub(r"(\S+) to (?=[+\d\u2212])", "\\1\u00a0to\u00a0", text)
    return environment.from_string(_text_of("page.html"))


def _text_of(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _printable(value: Any) -> Any:
    """Escape control characters in every text of the page; safe markup already has none."""
    return printable(value, keep=LINE_CHARACTERS) if isinstance(value, str) and not isinstance(value, Markup) else value


def _added_sections(report: Report) -> list[dict[str, Any]]:
    """Return the sections of plugins. A failing plugin causes a warning."""
    sections: list[Section] = []
    plugins = installed()
    for plugin, call in reversed([*plugins.implementations("report_sections")]):  # the order in which pluggy calls them
        with plugins.errors_of(plugin, "add its sections to the report"):
            returned = call(report) or ()
            is_list = isinstance(returned, Iterable) and not isinstance(returned, str)
            added = [*returned] if is_list else []
            wrong = [section for section in added if not isinstance(section, Section)] if is_list else [returned]
            if wrong:
                raise RecipeError(
                    "report_sections must return a list of kdkit.report.Section(title, html); got "
                    f"{'a list with ' if is_list else ''}a {type(wrong[0]).__name__}"
                )
            sections += added
    identifiers = [re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-") or "section" for section in sections]
    return [
        {"id": f"plugin-{index}-{identifier}", "title": section.title, "html": Markup(section.html)}
        for index, (section, identifier) in enumerate(zip(sections, identifiers, strict=True))
    ]
