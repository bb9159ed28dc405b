"""Write the tables of docs/lrhnet.md from the published results and from those in docs/results.

    python tools/make_lrhnet_page.py

Each table stands between two marks; the text around them is kept.
"""

import csv
import re
from collections.abc import Callable, Iterable
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

from kdkit.errors import DataError
from reproductions.lrhnet.paper_results import PARAMETERS, published

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "lrhnet.md"
RESULTS = ROOT / "docs" / "results"
MODELS = {"+ vanilla KD": "kd", "+ P-MLKD": "pmlkd", "+ S-MLKD": "smlkd"}
LEADS = (12, 3, 2)


def updated(page: str) -> str:
    """Return the page with new tables. Raises DataError for a mark of a table that does not exist."""

    def table(match: re.Match[str]) -> str:
        if match[1] not in TABLES:
            raise DataError(f"{PAGE.name} has no table {match[1]!r}; there are {', '.join(TABLES)}")
        return f"<!-- table: {match[1]} -->\n\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table: ([\w-]+) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def sizes() -> str:
    """Return the table of parameters by kind of network and leads."""
    rows = ([str(leads), *(f"{PARAMETERS[name][leads]:,}" for name in PARAMETERS)] for leads in LEADS)
    return _table(["leads", *PARAMETERS], rows)


def gains() -> str:
    """Return the table of gains over LRH-Net alone, in the challenge metric."""
    measured = {
        (kind, row["model"], int(row["leads"])): row
        for kind in ("simulated", "real")
        for row in _read(RESULTS / "distillation" / kind / "differences.csv")
        if row["score"] == "challenge_metric" and row["against"] == "LRH-Net"
    }
    rows = []
    for leads in (3, 2):
        for model, name in MODELS.items():
            paper, alone = (published(model_name, leads, "challenge_metric") for model_name in (name, "alone"))
            if paper is None or alone is None:
                continue
            cells = [model, str(leads), f"{paper - alone:+.2f}"]
            for kind in ("simulated", "real"):
                row = measured[kind, model, leads]
                difference, low, high = (_rounded(row[name]) for name in ("difference", "low", "high"))
                cells.append(f"{difference:+.2f} ({low:+.2f} to {high:+.2f})")
            rows.append(cells)
    return _table(["model", "leads", "paper", "kdkit, simulated records", "kdkit, real records"], rows)


TABLES: dict[str, Callable[[], str]] = {"sizes": sizes, "gains": gains}


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _rounded(text: str) -> Decimal:
    """Return a number with two decimals, halves away from zero, as the other pages do."""
    return Decimal(text).quantize(Decimal("0.01"), rounding=ROUND_HALF_UP)


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    columns = list(columns)
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text("utf-8")), "utf-8")
