"""The command `kdkit list`."""

import json
import re
import textwrap
from pathlib import Path

import click

from kdkit.cli.options import PATH
from kdkit.errors import KdkitError, did_you_mean
from kdkit.plugins.manager import Plugins, installed
from kdkit.plugins.recipe_file import read_recipe_file
from kdkit.plugins.registry import REGISTRIES
from kdkit.utils.files import exists
from kdkit.utils.printable import echo, printable

_WIDTH = 100  # columns, if the list goes to a file or a pipe


@click.command("list", short_help="List the registered losses, models, data sets and more.")
@click.argument("what", metavar="[KIND|FILE]", required=False, type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs, with full descriptions.")
def list_(what: Path | None, as_json: bool) -> None:
    """List everything that is registered, and the plugin that registered it.

        kdkit list
        kdkit list losses
        kdkit list recipe.py --json

    KIND is losses, models or another kind of the list. With FILE, the list includes what that recipe file registers.
    """
    kind = str(what) if str(what) in REGISTRIES else None
    if what is not None and kind is None:
        if what.suffix != ".py" and not exists(what):
            raise KdkitError(
                f"{str(what)!r} is neither a recipe file nor a kind of the list; {did_you_mean(str(what), REGISTRIES)}"
            )
        read_recipe_file(what)
    entries = registered(installed())
    if kind is not None:
        entries = {kind: entries[kind]}
    if as_json:
        echo(json.dumps(entries, indent=1))
    else:
        _show(entries)


def registered(plugins: Plugins) -> dict[str, list[dict[str, str]]]:
    """Return the registered entries by kind, each with its name, its plugin and the first line of its docstring."""
    everything = {kind: plugins.registry(kind) for kind in REGISTRIES}
    return {
        kind: [
            {
                "name": name,
                "plugin": registry.plugin(name),
                "description": next(iter(str(registry[name].__doc__ or "").strip().splitlines()), ""),
            }
            for name in registry
        ]
        for kind, registry in everything.items()
    }


def _show(registries: dict[str, list[dict[str, str]]]) -> None:
    """Print a line for each registered entry: its name, its plugin, and as much of its description as fits."""
    from kdkit.utils.console import make_console

    console = make_console()
    width = console.width if console.is_terminal else min(console.width, _WIDTH)
    for kind, entries in registries.items():
        console.print(kind, style="bold", markup=False)
        names = max((len(printable(entry["name"])) for entry in entries), default=0)
        sources = max((len(printable(entry["plugin"])) for entry in entries), default=0)
        for entry in entries:
            start = f"{printable(entry['name']):{names}}  {printable(entry['plugin']):{sources}}  "
            text = printable(entry["description"])
            console.print(start + _shortened(text, max(20, width - len(start))), markup=False, soft_wrap=True)
        console.print()


def _shortened(text: str, width: int) -> str:
    """Return a sentence. If it is too long, cut it after a clause, or otherwise after a word."""
    if len(text) <= width:
        return text
    ends = [match.start() for match in re.finditer(r"[,:;] | \(", text[: width - 3])]
    # Skip clauses of a word or two, which say too little, and clauses that end in brackets.
    clauses = [text[:end] for end in ends if end >= width // 3 and text[:end].count("(") == text[:end].count(")")]
    if clauses:
        return f"{clauses[-1]} ..."
    return textwrap.shorten(text, width, placeholder=" ...")
