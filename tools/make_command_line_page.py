"""Write the options of all commands to docs/command-line.md, from the texts of the commands.

Run `python tools/make_command_line_page.py`; text above the mark is kept.
"""

from collections.abc import Iterator
from pathlib import Path

import click

from kdkit.cli.main import add_plugin_commands, cli
from kdkit.errors import KdkitError

PAGE = Path(__file__).parents[1] / "docs" / "command-line.md"
MARK = (
    "<!-- Written by `python tools/make_command_line_page.py` from the texts of the commands: edit those instead. -->"
)
BAR = "\\|"  # in a cell
OPTIONS_OF = "kdkit run"  # the command of whose options other commands have many


def main() -> None:
    """Update the tables of the page."""
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def updated(page: str) -> str:
    """Return the page with new tables after the mark. Raises KdkitError without the mark."""
    head, mark, _tables = page.partition(MARK)
    if not mark:
        raise KdkitError(f"{PAGE.name} lacks the line after which the tables are written; put it back: {MARK}")
    rows_of = {name: rows for name, command in commands() if (rows := _rows(command))}
    # That of `kdkit run` first, since other commands refer to it.
    names = [OPTIONS_OF, *(name for name in rows_of if name != OPTIONS_OF)]
    return f"{head}{MARK}\n" + "".join(_table(name, rows_of[name], rows_of[OPTIONS_OF]) for name in names)


def commands() -> Iterator[tuple[str, click.Command]]:
    """Yield all commands by name, also those of kdkit_ecg, in the order of `kdkit --help`."""
    add_plugin_commands()
    yield from _commands_of(cli, "kdkit")


def options(command: click.Command) -> list[click.Option]:
    """Return the options of a command, without --help and those of a recipe that it has read."""
    params = getattr(command, "command_params", command.params)
    return [param for param in params if isinstance(param, click.Option)]


def _commands_of(group: click.Group, prefix: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands_of(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def _rows(command: click.Command) -> dict[str, str]:
    """Return the row of the table for each option of a command."""
    context, rows = click.Context(command), {}
    for option in options(command):
        flags, _text = option.get_help_record(context) or ("", "")
        extra = option.get_help_extra(context)
        default = "required" if "required" in extra else extra.get("default", "").removeprefix("(").removesuffix(")")
        if default != "required" and default and " " not in default:
            default = f"`{default}`"
        cells = (f"`{flags}`", default, option.help or "")
        rows[option.opts[0]] = f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |\n"
    return rows


def _table(name: str, rows: dict[str, str], shared: dict[str, str]) -> str:
    """Return the section of a command. shared: the rows of `kdkit run`, which are not repeated."""
    repeated = [] if name == OPTIONS_OF else [flag for flag, row in rows.items() if shared.get(flag) == row]
    own = [row for flag, row in rows.items() if flag not in repeated]
    text = f"\n### `{name}`\n"
    if own:
        text += "\n| option | default | purpose |\n|---|---|---|\n" + "".join(own)
    if repeated:
        text += (
            f"\n{'Also' if own else 'Only'} these of `{OPTIONS_OF}`: {', '.join(f'`{flag}`' for flag in repeated)}.\n"
        )
    return text


if __name__ == "__main__":
    main()
