"""The group of all commands, whose help lists them by purpose, and their completion in shells."""

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
    """A group whose help lists its commands by purpose, those of plugins last."""

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


_COMPLETION_HELP = """Print the script that completes commands, options and files in SHELL.

To use it in every new shell, add a line to its startup file:

\b
  bash, ~/.bashrc:   eval "$(kdkit completion bash)"
  zsh, ~/.zshrc:     eval "$(kdkit completion zsh)"
  fish, ~/.config/fish/config.fish:   kdkit completion fish | source
"""


@click.command(help=_COMPLETION_HELP, short_help="Print the script that completes commands in a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands, options and files in a shell."""
    complete = get_completion_class(shell)
    assert complete is not None  # click has all three
    root = ctx.find_root()
    echo(complete(root.command, {}, "kdkit", "_KDKIT_COMPLETE").source())
