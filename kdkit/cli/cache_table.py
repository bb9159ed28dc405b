"""Print the entries of a teacher cache for `kdkit cache`."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdkit.teachers.cache.entry import EntryInfo
from kdkit.utils.reprs import describe_count, format_bytes


def show_cache(console: Console, folder: Path, entries: Sequence[EntryInfo], deleted: Sequence[EntryInfo]) -> None:
    """Print the number of deleted entries, then a row for each entry of a folder."""
    if deleted:
        size = format_bytes(sum(entry.bytes for entry in deleted))
        count = describe_count(len(deleted), "entry", "entries")
        console.print(f"deleted {count}, {size}", markup=False, soft_wrap=True)
    if not entries:
        console.print(f"there are no cached outputs in {folder}", markup=False, soft_wrap=True)
        return
    total = format_bytes(sum(entry.bytes for entry in entries))
    table = Table(title=escape(f"Cached outputs in {folder} ({total})"), title_justify="left")
    for name in ("name", "net", "view", "data"):
        table.add_column(name, overflow="fold")
    for name in ("cached", "size", "last used"):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in entries:
        cached = f"{entry.written:,} of {entry.rows:,}" if entry.readable else f"format {entry.format}"
        used = "in use" if entry.open else time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        texts = (entry.path.name[:12], entry.net, _shorten(entry.view), _shorten(entry.data))
        table.add_row(*map(escape, texts), cached, format_bytes(entry.bytes), used)
    console.print(table)
    if not all(entry.readable for entry in entries):  # formats change between versions of kdkit
        text = "entries listed with a format are from another version of kdkit and never read; --delete removes them"
        console.print(text, markup=False, soft_wrap=True)


def _shorten(text: str) -> str:
    return text if len(text) <= 30 else f"{text[:27]}..."
