"""The tables of LRH-Net's paper with a study's figures beside the paper's: as Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Iterable, Sequence

from reproductions.lrhnet.grid import TITLES
from reproductions.lrhnet.model_costs import Cost
from reproductions.lrhnet.paper_results import SCORES, TABLES, published
from reproductions.lrhnet.results import Comparison, Results

NOTHING = "-"


def markdown_tables(results: Results) -> str:
    """Return each table with a column per score and set of leads; the paper's figure stands in brackets."""
    parts = []
    for table, rows in _tables(results):
        heads = ["model", *(f"{score}, {leads} leads" for _, score, leads in _columns(results))]
        body = [
            [TITLES[row], *(_markdown_cell(results, row, leads, name) for name, _, leads in _columns(results))]
            for row in rows
        ]
        parts.append(f"## {table}\n\n{markdown(heads, body)}")
    return "\n\n".join(parts)


def csv_tables(results: Results) -> str:
    """Return a line per table, row, set of leads and score, x100; what is not there is empty."""
    lines = []
    for table, rows in _tables(results):
        for row in rows:
            for name, _, leads in _columns(results):
                figure, paper = results.figure(row, leads, name), published(row, leads, name)
                ours = (figure.mean, figure.sd, figure.runs) if figure else (None, None, 0)
                lines.append((table.partition(":")[0], TITLES[row], leads, name, *ours, paper))
    return as_csv(("table", "model", "leads", "score", "mean", "sd", "runs", "paper"), lines)


def latex_tables(results: Results) -> str:
    """Return the tables for LaTeX, which need no package."""
    return "\n\n".join(_latex_table(results, table, rows) for table, rows in _tables(results)) + "\n"


def markdown_verdicts(compared: Sequence[Comparison]) -> str:
    """Return a line for each comparison."""
    body = [
        [
            TITLES[each.row],
            TITLES[each.against],
            str(each.leads),
            SCORES[each.score],
            f"{each.difference.value:+.2f}",
            "{:+.2f} to {:+.2f}".format(*each.difference.interval),
            each.pairs,
            each.difference.verdict,
        ]
        for each in compared
    ]
    return markdown(["model", "against", "leads", "score", "difference", "95 % interval", "over", "verdict"], body)


def csv_verdicts(compared: Sequence[Comparison]) -> str:
    """Return a line for each comparison, x100."""
    heads = ("model", "against", "leads", "score", "difference", "low", "high", "over", "verdict")
    lines = []
    for each in compared:
        names = TITLES[each.row], TITLES[each.against], each.leads, each.score
        found = each.difference
        lines.append((*names, found.value, *found.interval, each.pairs, found.verdict))
    return as_csv(heads, lines)


def markdown_costs(costs: Sequence[Cost]) -> str:
    """Return a line for each net."""
    heads = ["model", "leads", "parameters", "in the paper", "multiply-adds", "latency, ms", "file, kB"]
    body = [
        [
            cost.model,
            str(cost.leads),
            f"{cost.parameters:,}",
            NOTHING if cost.published is None else f"{cost.published:,}",
            f"{cost.multiply_adds / 1e6:,.1f} M",
            f"{cost.milliseconds:.1f}",
            f"{cost.file_bytes / 1000:,.0f}",
        ]
        for cost in costs
    ]
    return markdown(heads, body)


def csv_costs(costs: Sequence[Cost]) -> str:
    """Return a line for each net."""
    heads = ("model", "leads", "parameters", "published", "multiply_adds", "milliseconds", "file_bytes", "threads")
    return as_csv(heads, [tuple(getattr(cost, head) for head in heads) for cost in costs])


def markdown(heads: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return a table, the first column to the left."""
    rules = ["---", *["---:"] * (len(heads) - 1)]
    escaped = [[trial.replace("|", "\\|") for trial in row] for row in (heads, rules, *body)]
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def as_csv(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Return lines of CSV under their heads; None is empty, and numbers have four decimals."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(heads)
    for line in lines:
        writer.writerow([f"{each:.4f}" if isinstance(each, float) else each for each in line])
    return file.getvalue()


def escaped(text: str) -> str:
    """Return text as LaTeX prints it."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(each, f"\\{each}" if each in "&%$#_{}" else each) for each in text)


def _latex_table(results: Results, table: str, rows: Sequence[str]) -> str:
    columns, leads = _columns(results), results.grid.leads
    heads = " & ".join(rf"\multicolumn{{{len(leads)}}}{{c}}{{{escaped(short)}}}" for short in SCORES.values())
    lines = [
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\hline",
        rf" & {heads} \\",
        rf"model & {' & '.join(f'{leads} leads' for _, _, leads in columns)} \\",
        r"\hline",
        *(
            rf"{escaped(TITLES[row])} & {' & '.join(_latex_cell(results, row, at, name) for name, _, at in columns)} \\"
            for row in rows
        ),
        r"\hline",
        r"\end{tabular}",
    ]
    return "\n".join([f"% {table}; in brackets the paper's figures", *lines])


def _latex_cell(results: Results, row: str, leads: int, name: str) -> str:
    return _markdown_cell(results, row, leads, name).replace("±", r"$\pm$")


def _markdown_cell(results: Results, row: str, leads: int, name: str) -> str:
    ours, paper = _texts(results, row, leads, name)
    return f"{ours} ({paper})" if (ours, paper) != (NOTHING, NOTHING) else NOTHING


def _texts(results: Results, row: str, leads: int, name: str) -> tuple[str, str]:
    figure, paper = results.figure(row, leads, name), published(row, leads, name)
    ours = NOTHING if figure is None else f"{figure.mean:.2f}"
    if figure is not None and figure.sd is not None:
        ours += f" ± {figure.sd:.2f}"
    return ours, NOTHING if paper is None else f"{paper:.2f}"


def _tables(results: Results) -> Iterable[tuple[str, list[str]]]:
    """Return each table with those of its rows that were asked for, and no table without."""
    for table, rows in TABLES.items():
        asked = [row for row in rows if row in results.grid.rows]
        if asked:
            yield table, asked


def _columns(results: Results) -> list[tuple[str, str, int]]:
    return [(name, short, leads) for name, short in SCORES.items() for leads in results.grid.leads]
