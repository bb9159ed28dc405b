"""Tables 1 to 3 and Figure 4 of LRH-Net's paper (Chauhan et al. 2022, arXiv:2204.08000), beside the paper's figures.

Every net is a cell of a study: a cell that is done is skipped, one that was interrupted goes on, and a teacher is
trained once for all its students. Asked again with more rows, leads, folds or seeds, only what is new is trained.

    python -m reproductions.lrhnet.run_tables --quick --data path/to/challenge-2020
    python -m reproductions.lrhnet.run_tables --data path/to/challenge-2020

"""

import sys
from typing import Any

import click

from kdkit import KdkitError, Study
from reproductions.lrhnet.cli import command, kept_sizes, list_cells, run, runs_of, several, shared_by, study_options
from reproductions.lrhnet.grid import TITLES, Grid
from reproductions.lrhnet.report import write_page
from reproductions.lrhnet.results import Results


@click.command(help=__doc__.replace("\n\n    ", "\n\n\b\n    "))
@click.option("--rows", callback=several(str), default=",".join(TITLES), show_default=True, help="Of the tables.")
@click.option("--leads", callback=several(int), default="12,3,2", show_default=True, help="How many each net sees.")
@study_options
def main(**given: Any) -> None:
    """Run the cells that are missing, then write the report."""
    try:
        grid = Grid(rows=given["rows"], leads=given["leads"], runs=runs_of(given), shared=shared_by(given))
        study = Study(given["out"], grid.trials())
        if given["dry_run"]:
            list_cells(study, given["data"])
            return
        ready = run(study, given)
        report = given["report"] or given["out"]
        write_page(Results(study, grid, ready), report, command(main, __file__, given), kept_sizes(study))
    except KdkitError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"written: {report / 'tables.md'}")
    sys.exit(0 if len(ready) == len(study.trials) else 1)


if __name__ == "__main__":
    main()
