"""The section of a report about the files of `kdkit export` in the run folders."""

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from kdkit.export.card import FOLDER, read_cards, summary_rows
from kdkit.report.runs import ReportedRun
from kdkit.utils.printable import printable


def export_tables(runs: Sequence[ReportedRun]) -> Markup:
    """Return a table for each run that has exports, with the points that each file loses; empty if no run has any."""
    tables = []
    for run in runs:
        cards = read_cards(run.folder / FOLDER)
        if not cards:
            continue
        metrics = dict.fromkeys(metric for card in cards for metric in card["metric_gate"]["scores"])
        titles, *rows = summary_rows(cards)
        lines = []
        for card, row in zip(cards, rows, strict=True):
            lost = [card["metric_gate"]["scores"].get(metric, {}).get("points_lost") for metric in metrics]
            lines.append(_row("td", (*row, *("undefined" if points is None else f"{points:.2f}" for points in lost))))
        tables.append(
            Markup('{}<div class="scroll"><table><thead>{}</thead><tbody>{}</tbody></table></div>').format(
                Markup("<h3>{}</h3>").format(printable(run.label)) if len(runs) > 1 else "",
                _row("th", (*titles, *(f"{metric}, points lost" for metric in metrics))),
                Markup("").join(lines),
            )
        )
    return Markup("").join(tables)


def _row(tag: str, texts: Iterable[str]) -> Markup:
    cells = (Markup(f"<{tag}>{{}}</{tag}>").format(printable(text)) for text in texts)
    return Markup("<tr>{}</tr>").format(Markup("").join(cells))
