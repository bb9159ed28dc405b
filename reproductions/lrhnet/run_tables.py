"""Reproduce Tables 1 to 3 and Figure 4 of the LRH-Net paper (Chauhan et al. 2022, arXiv:2204.08000).

Each network is a trial of a study: finished trials are skipped, interrupted ones resume, and a teacher is trained once
for all its students. A second call with more rows, leads, folds or seeds trains the new trials only.

    python -m reproductions.lrhnet.run_tables --quick --data path/to/challenge-2020
    python -m reproductions.lrhnet.run_tables --data path/to/challenge-2020

"""

import sys
from typing import Any

import click

from kdkit import KdkitError, Study
from reproductions.lrhnet.cli import (
    OPTIONS,
    add_options,
    comma_separated,
    command_line,
    list_trials,
    load_split_sizes,
    run_study,
    runs_of,
    shared_options,
)
from reproductions.lrhnet.grid import TITLES, Grid
from reproductions.lrhnet.report import write_report
from reproductions.lrhnet.results import Results


@click.command(help=__doc__.replace("\n\n    ", "\n\n\b\n    "))  # \b: click keeps the line breaks of the commands
@click.option(
    "--rows", callback=comma_separated(str), default=",".join(TITLES), show_default=True, help="Of the tables."
)
@click.option("--leads", callback=comma_separated(int), default="12,3,2", show_default=True, help="Of the networks.")
@add_options(*OPTIONS)
def main(**options: Any) -> None:
    """Run the trials that are not finished, then write the report."""
    try:
        shared = shared_options(options)
        grid = Grid(rows=options["rows"], leads=options["leads"], runs=runs_of(options), shared=shared)
        study = Study(options["out"], grid.trials())
        if options["dry_run"]:
            list_trials(study, options["data"])
            return
        ready = run_study(study, options)
        folder = options["report"] or options["out"]
        command = command_line(main, __file__, options)
        write_report(Results(study, grid, ready), folder, command, load_split_sizes(study))
    except KdkitError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"written: {folder / 'tables.md'}")
    sys.exit(0 if len(ready) == len(study.trials) else 1)


if __name__ == "__main__":
    main()
