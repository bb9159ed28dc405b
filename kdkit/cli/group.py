"""The group of all commands, whose help lists them by purpose, and their completion in shells."""

import inspect
import re
from typing import Any

import click
from click.shell_completion import get_completion_class

from kdkit.utils.printable import echo

# Commands of plugins are in a section of their own.
_SECTIONS = {
    "Start": ("new", "list", "doctor", "completion"),
    "Experiments": ("check", "run", "sweep", "evaluate", "rerun"),
    "Results": ("classes", "report", "card", "export", "cache"),
    "Development of kdkit": ("bench",),
}


class CommandGroup(click.Group):
    """A group whose help lists its commands by purpose, those of plugins last.

    The help of all commands, including those of plugins, keeps the line breaks of indented blocks.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.help = with_blocks(self.help or "")

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command."""
        for command in (cmd, *getattr(cmd, "commands", {}).values()):
            command.help = with_blocks(command.help or "")
        super().add_command(cmd, name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each purpose."""
        listed = {name for names in _SECTIONS.values() for name in names}
        others = [name for name in self.list_commands(ctx) if name not in listed]
        width = max(map(len, self.commands), default=0)
        for title, names in {**_SECTIONS, "Commands of plugins": others}.items():
            commands = [(name, self.commands[name]) for name in names if name in self.commands]
            rows = [
                (name.ljust(width), command.get_short_help_str(formatter.width - width - 6))
                for name, command in commands
                if not command.hidden
            ]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def with_blocks(text: str) -> str:
    """Return a help text in which click does not wrap indented blocks, such as examples of commands."""
    return re.sub(r"(?<=\n\n)(?= )", "\b\n", inspect.cleandoc(text))


@click.command(short_help="Print the script that completes commands in a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands, options and files in SHELL.

    To use it in every new shell, add one of these lines to its startup file:

        eval "$(kdkit completion bash)"     # ~/.bashrc
        eval "$(kdkit completion zsh)"      # ~/.zshrc
        kdkit completion fish | source      # ~/.config/fish/config.fish
    """
    complete = get_completion_class(shell)
    assert complete is not None  # click has all three
    root = ctx.find_root()
    echo(complete(root.command, {}, "kdkit", "_KDKIT_COMPLETE").source())
