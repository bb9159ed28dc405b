"""The commands on finished runs: `kdkit classes`, `kdkit report` and `kdkit card`."""

from pathlib import Path

import click

from kdkit.cli.options import AVERAGE_OVER, PATH, net_option
from kdkit.utils.printable import echo


@click.command(short_help="Print the metrics of each class of a run.")
@click.argument("folder", type=PATH, metavar="RUN")
@net_option("every evaluated net")
@click.option(
    "--resamples",
    type=click.IntRange(min=2),
    default=1000,
    show_default=True,
    metavar="N",
    help="Number of bootstrap resamples for each interval; fewer are faster but less exact.",
)
@click.option(
    "--sensitivity",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="SHARE",
    show_default="the best F1",
    help="Choose the thresholds at which this share of the positives of the validation split is found, and show the "
    "specificity instead of F1.",
)
def classes(folder: Path, net: str | None, resamples: int, sensitivity: float | None) -> None:
    """Print the metrics of each class of the finished run in RUN.

        kdkit classes runs/first
        kdkit classes runs/first --net student --sensitivity 0.95

    The table has the positives in each split, the threshold with the best F1 on the validation split, and precision,
    recall, F1, AUROC and AUPRC with 95 % intervals; for pixels and tokens, the intersection over union instead of the
    last two. It includes classes without positives.
    """
    from kdkit.cli.per_class import table_of
    from kdkit.engine.storage.finished_run import read_class_table, read_metrics
    from kdkit.metrics import MinimumSensitivity
    from kdkit.utils.console import make_console, print_note
    from kdkit.utils.reprs import describe_names

    console, metrics = make_console(), read_metrics(folder, partial=True)
    thresholds_by = None if sensitivity is None else MinimumSensitivity(sensitivity)
    for name in metrics.results if net is None else (net,):
        reported, rows = read_class_table(folder, name, resamples=resamples, thresholds_by=thresholds_by)
        split = "validation" if reported.test is None else "test"
        console.print(table_of(rows, f"{name}, on {split}", console.width))
        if reported.test is None and any(row.threshold is not None for row in rows):
            # Metrics on the split that selected the thresholds are better than those on new samples.
            print_note(console, "there is no test split, so thresholds were chosen on the same samples")
        if sensitivity is not None and all(row.threshold is None for row in rows):
            print_note(console, "thresholds are for several labels per sample, so --sensitivity chooses none here")
        missing = describe_names(row.name for row in rows if not row.figures)
        if missing:
            print_note(console, f"no positives in {split}: {missing}")
    if not metrics.complete:
        print_note(console, "the evaluation of this run is not finished, so nets may be missing; resume the run")


@click.command(short_help="Write a page about finished runs.")
@click.argument("folders", nargs=-1, required=True, type=PATH, metavar="RUN...")
@click.option(
    "--out",
    type=PATH,
    metavar="FILE",
    show_default="report.html in RUN, or here for several runs",
    help="File to write.",
)
@AVERAGE_OVER
def report(folders: tuple[Path, ...], out: Path | None, average_over: tuple[str, ...]) -> None:
    """Write a page about finished runs: did distillation help, by how much, at what cost?

        kdkit report runs/first
        kdkit report runs/first runs/second --out compared.html

    RUN is the folder of a run, or of several runs, such as a study; unfinished runs are left out. Several runs are
    shown side by side. Runs that differ only in their seeds are compared over the seeds, and with --average-over also
    over these options. The page is a single HTML file that works offline. No recipe code is executed.
    """
    from kdkit.report import write_report
    from kdkit.report.verdict import headline_of
    from kdkit.utils.console import Status

    if out is None:
        is_single = len(folders) == 1 and folders[0].is_dir()
        out = folders[0] / "report.html" if is_single else Path("report.html")
    with Status() as status:
        status.show("writing the report")
        written = write_report(folders, out, average_over=average_over)
    for problem in dict.fromkeys((*written.left_out, *(text for read in written.runs for text in read.problems))):
        echo(f"warning: {problem}", err=True)
    echo(headline_of(written.verdicts))
    for verdict in written.verdicts:
        echo(f"{f'{verdict.label}: ' if len(written.verdicts) > 1 else ''}{verdict.sentence}")
    echo(f"saved to {out}")


@click.command(short_help="Write the model card of a finished run.")
@click.argument("folder", type=PATH, metavar="RUN")
@click.option("--out", type=PATH, metavar="FILE", show_default="README.md in RUN", help="File to write.")
def card(folder: Path, out: Path | None) -> None:
    """Write the model card of the finished run in RUN: Markdown with the metadata that the Hugging Face hub reads.

        kdkit card runs/first
        kdkit card runs/first --out CARD.md

    It has the method, results with intervals, the settings, and what is unknown. Add a license, and the name of the
    data set. No recipe code is executed.
    """
    from kdkit.report.card import CARD, write_card

    out = folder / CARD if out is None else out
    write_card(folder, out)
    echo(f"saved to {out}")
