"""The section of a report on the files of `kdkit export` in the folders of its runs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from kdkit.export.card import FOLDER, read_cards, summary_rows
from kdkit.report.runs import ReportedRun
from kdkit.utils.printable import printable


def export_tables(runs: Sequence[ReportedRun]) -> Markup:
    """Return a table for each run that has exports, with the scores that each file loses; empty if none has any."""
    return Markup("").join(_table(run, several=len(runs) > 1) for run in runs)


def _table(run: ReportedRun, *, several: bool) -> Markup:
    cards = read_cards(run.folder / FOLDER)
    if not cards:
        return Markup("")
    metrics = dict.fromkeys(metric for card in cards for metric in card["metric_gate"]["scores"])
    titles, *rows = summary_rows(cards)
    head = Markup("").join(_cell("th", title) for title in (*titles, *(f"{metric}, points lost" for metric in metrics)))
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(_cell("td", text) for text in (*row, *_lost(card, metrics))))
        for card, row in zip(cards, rows, strict=True)
    )
    title = Markup("<h3>{}</h3>").format(printable(run.label)) if several else Markup("")
    return Markup('{}<div class="scroll"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>').format(
        title, head, body
    )


def _lost(card: Mapping[str, Any], metrics: Iterable[str]) -> Iterator[str]:
    """Yield the points that a file loses in each metric."""
    for metric in metrics:
        lost = card["metric_gate"]["scores"].get(metric, {}).get("points_lost")
        yield "undefined" if lost is None else f"{lost:.2f}"


def _cell(tag: str, text: str) -> Markup:
    return Markup(f"<{tag}>{{}}</{tag}>").format(printable(text))
