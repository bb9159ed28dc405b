"""Measure whether distillation helps LRH-Net: tune a protocol without test records, then evaluate it with new seeds.

    python -m reproductions.lrhnet.run_effect tune --data path/to/challenge-2020
    python -m reproductions.lrhnet.run_effect evaluate --data path/to/challenge-2020

By default the records are simulated. Both commands skip finished trials and resume interrupted ones.
"""

from pathlib import Path

import click

from kdkit import KdkitError, Study
from reproductions.lrhnet.cli import (
    ANY_PATH,
    DATA,
    JOBS,
    OUT,
    THREADS,
    add_options,
    comma_separated,
    results_with_progress,
)
from reproductions.lrhnet.effect import (
    effects_of,
    evaluation_trials,
    scores_of,
    with_patient_intervals,
    write_effects,
)
from reproductions.lrhnet.protocol import CHOSEN, SEEDS, TRAIN, TUNING_SEEDS, Protocol, kind
from reproductions.lrhnet.tuning import tune, write_tuning

REPORT = click.option("--report", type=ANY_PATH, help="The folder of the page; by default --out.")
OPTIONS = (DATA, OUT, REPORT, THREADS, JOBS)


@click.group(help=__doc__.replace("\n\n    ", "\n\n\b\n    "))  # \b: click keeps the line breaks of the commands
def main() -> None:
    """Tune, or evaluate."""


@main.command("tune")
@add_options(*OPTIONS)
def tune_command(data: Path | None, out: Path, report: Path | None, threads: int | None, jobs: int) -> None:
    """Choose epochs, augmentation, KD loss, temperature and label weight on the validation split."""
    try:
        chosen, candidates = tune(out, data, lambda study: run_all(study, jobs))
    except KdkitError as error:
        raise click.ClickException(str(error)) from error
    opening = [
        f"# The protocol, tuned on {kind(data)} records",
        made_by("tune", data),
        f"Seeds {', '.join(map(str, TUNING_SEEDS))}, which the evaluation does not use. {about_records(data)}",
    ]
    write_tuning(chosen, candidates, report or out, opening)
    click.echo(f"chosen: {chosen}\nwritten: {(report or out) / 'tuning.md'}")


@main.command()
@click.option(
    "--seeds", callback=comma_separated(int), help="Some of the protocol's, to share the work; no page is written."
)
@add_options(*OPTIONS)
def evaluate(
    seeds: tuple[int, ...] | None, data: Path | None, out: Path, report: Path | None, threads: int | None, jobs: int
) -> None:
    """Train every row with every seed by the chosen protocol, and compare the rows."""
    protocol, all_seeds = CHOSEN[kind(data)], SEEDS[kind(data)]
    try:
        study = Study(out, evaluation_trials(seeds or all_seeds, protocol, data))
        run_all(study, jobs)
    except KdkitError as error:
        raise click.ClickException(str(error)) from error
    if seeds:
        return
    opening = [
        f"# Does distillation help? On {kind(data)} records",
        made_by("evaluate", data),
        f"The protocol ([how it was tuned](tuning.md)): {described(protocol)}. Seeds {', '.join(map(str, all_seeds))}. "
        f"{about_records(data)} {about_intervals(data)}",
    ]
    scores = scores_of(study, all_seeds, protocol)
    effects = effects_of(scores)
    if data:  # all seeds share one test fold
        effects = with_patient_intervals(effects, study, all_seeds, protocol)
    write_effects(scores, effects, report or out, opening)
    click.echo(f"written: {(report or out) / 'effect.md'}")


def run_all(study: Study, jobs: int) -> None:
    """Run the trials. Raises ClickException at the first that fails."""
    for result in results_with_progress(study, None, jobs):
        if result.error is not None:
            raise click.ClickException(f"{result.trial.name} failed; repeat the command to resume")


def described(protocol: Protocol) -> str:
    """Return the protocol in words."""
    return (
        f"{protocol.epochs} epochs, augmentation {protocol.augment}, KD loss {protocol.kd_loss}, "
        f"label weight {protocol.label_weight:g}"
    )


def about_records(data: Path | None) -> str:
    """Return a description of the records."""
    if data is None:
        return f"{TRAIN} simulated training records, which differ by seed."
    return (
        "The same few records for each seed: of five folds, fold 0 is the test split and fold 1 the validation split."
    )


def about_intervals(data: Path | None) -> str:
    """Return a description of the intervals."""
    if data is None:
        return "Intervals are over records and seeds at once."
    return (
        "The tuning used no record of the test fold. The interval next to a difference is over seeds alone; that of "
        "the last column resamples the test records, and is over patients."
    )


def made_by(command: str, data: Path | None) -> str:
    """Return the paragraph with the command that makes the page."""
    arguments = f"{command}{' --data DIR' if data else ''}"
    return f"Made by\n\n```console\npython -m reproductions.lrhnet.run_effect {arguments}\n```"


if __name__ == "__main__":
    main()
