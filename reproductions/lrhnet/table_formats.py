"""Format the tables of LRH-Net's paper, with a study's results next to the paper's, as Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Iterable, Sequence

from reproductions.lrhnet.grid import TITLES
from reproductions.lrhnet.model_costs import Cost
from reproductions.lrhnet.paper_results import SCORES, TABLES, published
from reproductions.lrhnet.results import Comparison, Results

MISSING = "-"


def markdown_tables(results: Results) -> str:
    """Return each table with a column per score and number of leads; the paper's results are in brackets."""
    parts = []
    for table, rows in _tables(results):
        header = ["model", *(f"{title}, {leads} leads" for _, title, leads in _columns(results))]
        body = [
            [TITLES[row], *(_entry(results, row, leads, score) for score, _, leads in _columns(results))]
            for row in rows
        ]
        parts.append(f"## {table}\n\n{markdown(header, body)}")
    return "\n\n".join(parts)


def csv_tables(results: Results) -> str:
    """Return a line per table, row, number of leads and score, x100; missing results are empty."""
    lines = []
    for table, rows in _tables(results):
        for row in rows:
            for name, _, leads in _columns(results):
                score, paper = results.score(row, leads, name), published(row, leads, name)
                columns = (score.mean, score.sd, score.runs) if score else (None, None, 0)
                lines.append((table.partition(":")[0], TITLES[row], leads, name, *columns, paper))
    return as_csv(("table", "model", "leads", "score", "mean", "sd", "runs", "paper"), lines)


def latex_tables(results: Results) -> str:
    """Return the tables for LaTeX; they need no package."""
    tables = []
    columns, leads = _columns(results), results.grid.leads
    groups = " & ".join(rf"\multicolumn{{{len(leads)}}}{{c}}{{{escape_latex(title)}}}" for title in SCORES.values())
    for table, rows in _tables(results):
        lines = [
            f"% {table}; in brackets the paper's figures",
            rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
            r"\hline",
            rf" & {groups} \\",
            rf"model & {' & '.join(f'{count} leads' for _, _, count in columns)} \\",
            r"\hline",
        ]
        for row in rows:
            entries = [_entry(results, row, count, score).replace("±", r"$\pm$") for score, _, count in columns]
            lines.append(rf"{escape_latex(TITLES[row])} & {' & '.join(entries)} \\")
        tables.append("\n".join([*lines, r"\hline", r"\end{tabular}"]))
    return "\n\n".join(tables) + "\n"


def markdown_comparisons(comparisons: Sequence[Comparison]) -> str:
    """Return a line for each comparison."""
    body = [
        [
            TITLES[comparison.row],
            TITLES[comparison.baseline],
            str(comparison.leads),
            SCORES[comparison.score],
            f"{comparison.difference.value:+.2f}",
            "{:+.2f} to {:+.2f}".format(*comparison.difference.interval),
            comparison.pairs,
            comparison.difference.verdict,
        ]
        for comparison in comparisons
    ]
    return markdown(["model", "against", "leads", "score", "difference", "95 % interval", "over", "verdict"], body)


def csv_comparisons(comparisons: Sequence[Comparison]) -> str:
    """Return a line for each comparison, x100."""
    header = ("model", "against", "leads", "score", "difference", "low", "high", "over", "verdict")
    lines = []
    for comparison in comparisons:
        names = TITLES[comparison.row], TITLES[comparison.baseline], comparison.leads, comparison.score
        result = comparison.difference
        lines.append((*names, result.value, *result.interval, comparison.pairs, result.verdict))
    return as_csv(header, lines)


def markdown_costs(costs: Sequence[Cost]) -> str:
    """Return a line for each network."""
    header = ["model", "leads", "parameters", "in the paper", "multiply-adds", "latency, ms", "file, kB"]
    body = [
        [
            cost.model,
            str(cost.leads),
            f"{cost.parameters:,}",
            MISSING if cost.published is None else f"{cost.published:,}",
            f"{cost.multiply_adds / 1e6:,.1f} M",
            f"{cost.milliseconds:.1f}",
            f"{cost.file_bytes / 1000:,.0f}",
        ]
        for cost in costs
    ]
    return markdown(header, body)


def csv_costs(costs: Sequence[Cost]) -> str:
    """Return a line for each network."""
    header = ("model", "leads", "parameters", "published", "multiply_adds", "milliseconds", "file_bytes", "threads")
    return as_csv(header, [tuple(getattr(cost, column) for column in header) for cost in costs])


def markdown(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return a table with its first column aligned to the left, the others to the right."""
    alignment = ["---", *["---:"] * (len(header) - 1)]
    # A vertical bar in an entry would end it.
    rows = [[entry.replace("|", "\\|") for entry in row] for row in (header, alignment, *body)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def as_csv(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Return CSV with a header; None is empty, and floats have four decimals."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    for line in lines:
        writer.writerow([f"{value:.4f}" if isinstance(value, float) else value for value in line])
    return file.getvalue()


def escape_latex(text: str) -> str:
    """Return text with LaTeX's special characters escaped."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(char, f"\\{char}" if char in "&%$#_{}" else char) for char in text)


def _entry(results: Results, row: str, leads: int, name: str) -> str:
    """Return a score with its deviation over runs, then the paper's in brackets."""
    score, paper = results.score(row, leads, name), published(row, leads, name)
    if score is None and paper is None:
        return MISSING
    text = MISSING if score is None else f"{score.mean:.2f}"
    if score is not None and score.sd is not None:
        text += f" ± {score.sd:.2f}"
    return f"{text} ({MISSING if paper is None else f'{paper:.2f}'})"


def _tables(results: Results) -> Iterable[tuple[str, list[str]]]:
    """Yield the title of each table and those of its rows that the grid has; tables without rows are left out."""
    for table, rows in TABLES.items():
        selected = [row for row in rows if row in results.grid.rows]
        if selected:
            yield table, selected


def _columns(results: Results) -> list[tuple[str, str, int]]:
    """Return the score, its title and the number of leads of each column."""
    return [(score, title, leads) for score, title in SCORES.items() for leads in results.grid.leads]
