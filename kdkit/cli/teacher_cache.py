"""Show a person which answers are recorded in a folder."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdkit.teachers.cache import EntryInfo


def show_cache(console: Console, folder: Path, kept: Sequence[EntryInfo], gone: Sequence[EntryInfo]) -> None:
    """Write a row for each teacher and use that is recorded, and how much was deleted."""
    if gone:
        size = _size(sum(each.bytes for each in gone))
        console.print(f"deleted {len(gone)} of them, {size}", markup=False, soft_wrap=True)
    if not kept:
        console.print(f"no answers are recorded in {folder}", markup=False, soft_wrap=True)
        return
    total = _size(sum(each.bytes for each in kept))
    table = Table(title=escape(f"Answers in {folder} ({total})"), title_justify="left")
    for name in ("name", "net", "view", "data"):
        table.add_column(name, overflow="fold")
    for name in ("known", "size", "last used"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in kept:
        when = "now" if each.open else time.strftime("%Y-%m-%d %H:%M", time.localtime(each.used))
        row = (each.path.name[:12], each.net, _short(each.view), _short(each.data))
        table.add_row(*map(escape, row), f"{each.known:,} of {each.rows:,}", _size(each.bytes), when)
    console.print(table)


def _size(amount: int) -> str:
    if amount < 1e6:
        return f"{amount / 1e3:.0f} kB"
    return f"{amount / 1e9:.2f} GB" if amount >= 1e9 else f"{amount / 1e6:.1f} MB"


def _short(text: str) -> str:
    return text if len(text) <= 30 else f"{text[:27]}..."
