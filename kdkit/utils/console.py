"""Create the console to which commands print tables and progress."""

from rich.console import Console

_WIDTH = 120  # columns of output that goes to a file or a pipe


def make_console() -> Console:
    """Return a console as wide as the terminal, or 120 columns wide if there is no terminal, so that tables fit."""
    console = Console(highlight=False, emoji=False)  # without emoji a label such as ":x:" is printed as it is
    return console if console.is_terminal else Console(highlight=False, emoji=False, width=_WIDTH)
