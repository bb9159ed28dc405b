"""Measure how the number and the choice of levels affect students of few leads, which the LRH-Net paper leaves open.

A ladder such as 12-6-3-2 is a MultiLevel of SE-ResNets: each rung learns from the labels and from all rungs above it.
LRH-Net then learns from none of its rungs, from the first, from the first two, and so on (Chauhan et al. 2022,
arXiv:2204.08000, ends with this question). Finished trials are skipped and interrupted ones resume.

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
from reproductions.lrhnet.lead_ladder import SCORES, Gap, Ladders, Point, dashed, gaps, points
from reproductions.lrhnet.plots import plot_lines
from reproductions.lrhnet.report import cautions, counted
from reproductions.lrhnet.table_formats import as_csv, markdown

HARDEST = 1 / 3  # of the diseases, by the AUPRC of the teacher of twelve leads


@click.command(help=__doc__.replace("\n\n    ", "\n\n\b\n    "))  # \b: click keeps the line breaks of the commands
@click.option(
    "--ladders", callback=comma_separated(str), default="12-6-4-3-2-1", show_default=True, help="With commas between."
)
@click.option("--leads", callback=comma_separated(int), help="Of the students; by default those of each last rung.")
@add_options(*OPTIONS)
def main(**options: Any) -> None:
    """Run the trials that are not finished, then write the report."""
    try:
        chosen = [tuple(int(count) for count in ladder.split("-")) for ladder in options["ladders"]]
    except ValueError as error:
        raise click.BadParameter(f"a ladder is numbers of leads, such as 12-6-3; got {options['ladders']}") from error
    try:
        shared = shared_options(options)
        ladders = Ladders(ladders=chosen, leads=options["leads"], runs=runs_of(options), shared=shared)
        study = Study(options["out"], ladders.trials())
        if options["dry_run"]:
            list_trials(study, options["data"])
            return
        ready = run_study(study, options)
        folder = options["report"] or options["out"]
        opening = [
            "# Rungs of the ladder",
            f"Made by\n\n```console\n{command_line(main, __file__, options)}\n```",
            *cautions(ladders.runs, ladders.shared, load_split_sizes(study)),
        ]
        write_report(list(points(study, ladders, ready)), list(gaps(study, ladders, ready)), folder, opening)
    except KdkitError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"written: {folder / 'ladder.md'}")
    sys.exit(0 if len(ready) == len(study.trials) else 1)


def write_report(points: Sequence[Point], gaps: Sequence[Gap], folder: Path, opening: Sequence[str]) -> None:
    """Write the page, the tables as CSV and the plots."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ladder.csv").write_text(csv_scores(points))
    (folder / "gaps.csv").write_text(csv_gaps(gaps))
    for score in ("challenge_metric", "macro_auprc"):
        labels = ("rungs that teach", f"{SCORES[score]} x100")
        plot_lines(scores_by_rungs(points, score), labels, folder / f"score-{score}")
    plot_lines(gaps_by_hardness(gaps), ("rungs that teach", "mean gap to the first rung, AUPRC x100"), folder / "gaps")
    parts = [
        *opening,
        "LRH-Net after learning from this many rungs of a ladder, x100, on the test fold.",
        score_table(points),
        "![challenge metric](score-challenge_metric.svg)\n\n![macro AUPRC](score-macro_auprc.svg)",
        "## Each disease's gap to its teacher",
        "AUPRC x100 of the first rung, minus that of the student after 0, 1, 2 ... rungs; the hardest for the first "
        "rung come first. The gap of a disease with a handful of positives is due to chance.",
        *(gap_table(list(group)) for _, group in groupby(gaps, title)),
        "![mean gaps](gaps.svg)",
        "The same as files: [ladder.csv](ladder.csv), [gaps.csv](gaps.csv).",
    ]
    (folder / "ladder.md").write_text("\n\n".join(parts) + "\n")


def csv_scores(points: Sequence[Point]) -> str:
    """Return a line for each score of each student, x100."""
    header = ("ladder", "leads", "rungs", "score", "mean", "sd", "runs", "verdict_against_none")
    verdicts = [point.against_none[0].verdict if point.against_none else None for point in points]
    lines = [(dashed(point.ladder), *point[1:7], verdict) for point, verdict in zip(points, verdicts, strict=True)]
    return as_csv(header, lines)


def csv_gaps(gaps: Sequence[Gap]) -> str:
    """Return a line for each disease of each student, AUPRC x100."""
    header = ("ladder", "leads", "rungs", "disease", "positives", "student", "top_rung", "nearest_rung", "gap_to_top")
    return as_csv(header, [(dashed(gap.ladder), *gap[1:], gap.top - gap.student) for gap in gaps])


def title(result: Point | Gap) -> str:
    """Return the title of a ladder with its student."""
    return f"{dashed(result.ladder)}, student of {result.leads}"


def score_table(points: Sequence[Point]) -> str:
    """Return a row for each ladder and number of rungs."""
    header = ["ladder", "rungs", *SCORES.values(), "against none, challenge metric"]
    body = []
    for _, group in groupby(points, lambda point: (point.ladder, point.leads, point.rungs)):
        scores = list(group)  # one for each of SCORES, the challenge metric first
        against_none = "-"
        if scores[0].against_none:
            difference, pairs = scores[0].against_none
            against_none = f"{difference.value:+.2f}, {difference.verdict} ({pairs})"
        figures = [f"{score.mean:.2f}" + (f" ± {score.sd:.2f}" if score.sd is not None else "") for score in scores]
        body.append([title(scores[0]), str(scores[0].rungs), *figures, against_none])
    return markdown(header, body)


def gap_table(gaps: Sequence[Gap]) -> str:
    """Return a row for each disease of one ladder."""
    counts = sorted({gap.rungs for gap in gaps})
    by_student = {(gap.disease, gap.rungs): gap for gap in gaps}
    hardest_first = sorted((gap for gap in gaps if gap.rungs == 0), key=lambda gap: gap.top)
    header = [f"{title(gaps[0])}: disease", "positives", "first rung", *(counted(count, "rung") for count in counts)]
    body = [
        [first.disease, f"{first.positives:g}", f"{first.top:.1f}"]
        + [f"{gap.top - gap.student:+.1f}" for count in counts if (gap := by_student.get((first.disease, count)))]
        for first in hardest_first
    ]
    return markdown(header, body)


def scores_by_rungs(points: Sequence[Point], score: str) -> dict[str, list[tuple[int, float, float]]]:
    """Return the lines of a score: by ladder (rungs, mean, sd)."""
    lines: dict[str, list[tuple[int, float, float]]] = {}
    for point in points:
        if point.score == score:
            lines.setdefault(title(point), []).append((point.rungs, point.mean, point.sd or 0.0))
    return lines


def gaps_by_hardness(gaps: Sequence[Gap]) -> dict[str, list[tuple[int, float, float]]]:
    """Return the mean gap by number of rungs, of the diseases hardest for the first rung and of the others."""
    lines: dict[str, list[tuple[int, float, float]]] = {}
    for (ladder, count), group in groupby(gaps, lambda gap: (title(gap), gap.rungs)):
        hardest_first = sorted(group, key=lambda gap: gap.top)
        hard = max(1, round(HARDEST * len(hardest_first)))
        for label, diseases in (("hardest third", hardest_first[:hard]), ("others", hardest_first[hard:])):
            if diseases:
                mean = fmean(gap.top - gap.student for gap in diseases)
                lines.setdefault(f"{ladder}: {label}", []).append((count, mean, 0.0))
    return lines


if __name__ == "__main__":
    main()
