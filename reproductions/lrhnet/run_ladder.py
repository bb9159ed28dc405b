"""How the number and the choice of levels affects students of few leads, which LRH-Net's paper leaves open.

A ladder such as 12-6-3-2 is a MultiLevel of SE-ResNets: each rung learns from the labels and from all rungs above it.
LRH-Net then learns from none of its rungs, from the first, from the first two ... (Chauhan et al. 2022,
arXiv:2204.08000, ends with this question). Cells are kept and gone on with as in lrhnet_tables.py.

    python -m reproductions.lrhnet.run_ladder --quick --ladders 12-6-4-3-2-1 --data path/to/challenge-2020
    python -m reproductions.lrhnet.run_ladder --quick --ladders 12-2,12-6-2,12-6-3-2 --leads 2
"""

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import click

from kdkit import KdkitError, Study
from reproductions.lrhnet.cli import command, kept_sizes, list_cells, run, runs_of, several, shared_by, study_options
from reproductions.lrhnet.lead_ladder import SCORES, Gap, Ladders, Point, Rungs, gaps, points
from reproductions.lrhnet.plots import lines
from reproductions.lrhnet.report import cautions, counted
from reproductions.lrhnet.table_formats import as_csv, markdown

HARDEST = 1 / 3  # of the diseases, by what the teacher of twelve leads makes of them


def rungs_of(text: str) -> Rungs:
    """Return a ladder from the numbers of leads of its rungs. Raises ValueError where they are no numbers."""
    return tuple(int(count) for count in text.split("-"))


@click.command(help=__doc__.replace("\n\n    ", "\n\n\b\n    "))
@click.option("--ladders", callback=several(str), default="12-6-4-3-2-1", show_default=True, help="Any, with commas.")
@click.option("--leads", callback=several(int), help="Of the students; those of each last rung if not given.")
@study_options
def main(**given: Any) -> None:
    """Run the cells that are missing, then write the report."""
    try:
        chosen = [rungs_of(each) for each in given["ladders"]]
    except ValueError as error:
        raise click.BadParameter(f"a ladder is numbers of leads, such as 12-6-3; got {given['ladders']}") from error
    try:
        ladders = Ladders(ladders=chosen, leads=given["leads"], runs=runs_of(given), shared=shared_by(given))
        study = Study(given["out"], ladders.trials())
        if given["dry_run"]:
            list_cells(study, given["data"])
            return
        ready = run(study, given)
        report = given["report"] or given["out"]
        told = cautions(ladders.runs, ladders.shared, kept_sizes(study))
        write_report(
            list(points(study, ladders, ready)),
            list(gaps(study, ladders, ready)),
            report,
            [
                "# Rungs of the ladder",
                f"Made by\n\n```console\n{command(main, __file__, given)}\n```",
                *told,
            ],
        )
    except KdkitError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"written: {report / 'ladder.md'}")
    sys.exit(0 if len(ready) == len(study.trials) else 1)


def write_report(metrics: Sequence[Point], apart: Sequence[Gap], folder: Path, opening: Sequence[str]) -> None:
    """Write the page, the tables as CSV and the plots."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ladder.csv").write_text(csv_scores(metrics))
    (folder / "gaps.csv").write_text(csv_gaps(apart))
    for score in ("challenge_metric", "macro_auprc"):
        lines(by_rungs(metrics, score), ("rungs that teach", f"{SCORES[score]} x100"), folder / f"score-{score}")
    lines(by_hardness(apart), ("rungs that teach", "mean gap to the first rung, AUPRC x100"), folder / "gaps")
    parts = [
        *opening,
        "LRH-Net after learning from so many rungs of a ladder, x100, on the test fold.",
        metrics_table(metrics),
        "![challenge metric](score-challenge_metric.svg)\n\n![macro AUPRC](score-macro_auprc.svg)",
        "## Each disease's gap to its teacher",
        "AUPRC x100 of the first rung, less that of the student after 0, 1, 2 ... rungs; the hardest for the first "
        "rung come first. A disease with a handful of positives has a gap of chance.",
        *(gap_table(list(each)) for _, each in groupby(apart, name)),
        "![mean gaps](gaps.svg)",
        "The same as files: [ladder.csv](ladder.csv), [gaps.csv](gaps.csv).",
    ]
    (folder / "ladder.md").write_text("\n\n".join(parts) + "\n")


def csv_scores(metrics: Sequence[Point]) -> str:
    """Return a line for each score of each student, x100."""
    heads = ("ladder", "leads", "rungs", "score", "mean", "sd", "runs", "verdict_against_none")
    return as_csv(
        heads,
        [(dashed(each.ladder), *each[1:7], each.against[0].verdict if each.against else None) for each in metrics],
    )


def csv_gaps(apart: Sequence[Gap]) -> str:
    """Return a line for each disease of each student, AUPRC x100."""
    heads = ("ladder", "leads", "rungs", "disease", "positives", "student", "top_rung", "nearest_rung", "gap_to_top")
    return as_csv(heads, [(dashed(each.ladder), *each[1:], each.top - each.student) for each in apart])


def dashed(rungs: Rungs) -> str:
    """Return a ladder as it is given."""
    return "-".join(map(str, rungs))


def name(of: Point | Gap) -> str:
    """Return how a ladder and its student are called."""
    return f"{dashed(of.ladder)}, student of {of.leads}"


def metrics_table(metrics: Sequence[Point]) -> str:
    """Return a row for each ladder and number of rungs."""
    heads = ["ladder", "rungs", *SCORES.values(), "against none, challenge metric"]
    body = []
    for _, group in groupby(metrics, lambda each: (each.ladder, each.leads, each.rungs)):
        each = list(group)
        against = each[0].against
        told = f"{against[0].value:+.2f}, {against[0].verdict} ({against[1]})" if against else "-"
        figures = [f"{one.mean:.2f}" + (f" ± {one.sd:.2f}" if one.sd is not None else "") for one in each]
        body.append([name(each[0]), str(each[0].rungs), *figures, told])
    return markdown(heads, body)


def gap_table(apart: Sequence[Gap]) -> str:
    """Return a row for each disease of one ladder."""
    counts = sorted({each.rungs for each in apart})
    found = {(each.disease, each.rungs): each for each in apart}
    first = sorted((each for each in apart if each.rungs == 0), key=lambda each: each.top)
    heads = [f"{name(apart[0])}: disease", "positives", "first rung", *(counted(count, "rung") for count in counts)]
    body = [
        [each.disease, f"{each.positives:g}", f"{each.top:.1f}"]
        + [f"{one.top - one.student:+.1f}" for count in counts if (one := found.get((each.disease, count)))]
        for each in first
    ]
    return markdown(heads, body)


def by_rungs(metrics: Sequence[Point], score: str) -> dict[str, list[tuple[int, float, float]]]:
    """Return what is plotted of a score: by ladder (rungs, mean, sd)."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    for each in metrics:
        if each.score == score:
            found.setdefault(name(each), []).append((each.rungs, each.mean, each.sd or 0.0))
    return found


def by_hardness(apart: Sequence[Gap]) -> dict[str, list[tuple[int, float, float]]]:
    """Return the mean gap by number of rungs, of the diseases hardest for the first rung and of the others."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    for (ladder, count), group in groupby(apart, lambda each: (name(each), each.rungs)):
        ordered = sorted(group, key=lambda each: each.top)
        hard = max(1, round(HARDEST * len(ordered)))
        for kind, part in (("hardest third", ordered[:hard]), ("others", ordered[hard:])):
            if part:
                mean = fmean(each.top - each.student for each in part)
                found.setdefault(f"{ladder}: {kind}", []).append((count, mean, 0.0))
    return found


if __name__ == "__main__":
    main()
