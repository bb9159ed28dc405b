"""The command `kdkit card`."""

from pathlib import Path

import click

from kdkit.cli.options import PATH
from kdkit.utils.printable import echo


@click.command(short_help="Write the model card of a finished run.")
@click.argument("folder", type=PATH, metavar="RUN")
@click.option("--out", type=PATH, help="File; README.md in the folder of the run if not given.")
def card(folder: Path, out: Path | None) -> None:
    """Write the model card of the finished run in RUN: Markdown with the metadata that the Hugging Face hub reads.

    It has the method, results with intervals, the settings, and what is not known. Add a license, and the name of the
    data set. No code of a recipe is run.
    """
    from kdkit.report.card import CARD, write_card

    out = folder / CARD if out is None else out
    write_card(folder, out)
    echo(f"saved to {out}")
