"""Write Markdown with texts that come from data, on one line each."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from kdkit.utils.printable import printable


def as_text(value: Any) -> str:
    """Return a value as text, with markup escaped."""
    return re.sub(r"([\\`*_\[\]<>#|~&$])", r"\\\1", printable(str(value)))


def as_code(value: Any) -> str:
    """Return a value as code, which a table may contain."""
    content = printable(str(value)).replace("|", "\\|")
    # The fence is longer than any run of backticks in the content.
    longest = max((len(ticks) for ticks in re.findall("`+", content)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{content or ' '}{space}{fence}"


def table_lines(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table, whose cells are Markdown."""
    for row in (titles, ["---"] * len(titles), *rows):
        yield f"| {' | '.join(row)} |"
