"""Escape the control characters of printed texts: names come from data, and terminals act on these characters."""

import os
import sys
import unicodedata

import click

LINE_CHARACTERS = "\n\t"


def printable(text: str, *, keep: str = "") -> str:
    r"""Return a text with every unprintable character escaped as in Python source, such as ``\x1b``.

    These are control characters, which can clear the screen or set the title of a terminal, marks that change the text
    direction (U+202E), zero-width characters (U+200B), line separators, and lone surrogates, which represent the bytes
    of a file name that is not UTF-8. Spaces of any kind are kept. Markup of rich and HTML is not escaped.

    keep: other characters to keep, such as `LINE_CHARACTERS` in a text of several lines.
    """
    if text.isprintable():  # almost every text
        return text
    return "".join(
        character
        if character.isprintable() or character in keep or unicodedata.category(character) == "Zs"
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def encodable(text: str, encoding: str) -> str:
    """Return a text with every character escaped that an encoding lacks, such as that of a file or pipe on Windows."""
    return text if text.isascii() else text.encode(encoding, "backslashreplace").decode(encoding)


def is_first_process() -> bool:
    """Whether this process prints for all processes of torchrun; True without torchrun. Needs no process group."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


def echo(text: str, *, err: bool = False) -> None:
    """Print a text of one or several lines to stdout, or to stderr if `err`, with its control characters escaped.

    Under torchrun, all processes have the same results, and only the first one prints to stdout.
    """
    if err or is_first_process():
        encoding = getattr(sys.stderr if err else sys.stdout, "encoding", None) or "utf-8"
        click.echo(encodable(printable(text, keep=LINE_CHARACTERS), encoding), err=err)
