"""Does distillation help LRH-Net? Tune a protocol on records that no result is reported on, then ask, on fresh seeds.

    python -m reproductions.lrhnet.run_effect tune --data path/to/challenge-2020
    python -m reproductions.lrhnet.run_effect ask --data path/to/challenge-2020

Without --data the records are simulated. Both skip what is done, and go on with what was interrupted.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kdkit import KdkitError, Study
from reproductions.lrhnet.cli import ANY, FOLDER, JOBS, line, several, use_threads
from reproductions.lrhnet.effect import asked_cells, effects_of, figures_of, with_patients, write_effects
from reproductions.lrhnet.protocol import CHOSEN, SEEDS, TRAIN, TUNING_SEEDS, Protocol, kind
from reproductions.lrhnet.tuning import tune, write_tuning

OPTIONS = (
    click.option("--data", type=FOLDER, help="Of Challenge records; simulated ones if not given."),
    click.option("--out", type=ANY, default=Path("results"), show_default=True, help="The folder of all cells."),
    click.option("--report", type=ANY, help="Where the page goes; --out if not given."),
    click.option("--threads", type=click.IntRange(min=1), callback=use_threads, help="Of torch."),
    JOBS,
)


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of both."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@click.group(help=__doc__.replace("\n\n    ", "\n\n\b\n    "))
def main() -> None:
    """Tune, or ask."""


@main.command("tune")
@common
def tune_(data: Path | None, out: Path, report: Path | None, threads: int | None, jobs: int) -> None:
    """Choose epochs, augmentation, loss, temperature and balance on the selection split."""
    try:
        chosen, tried = tune(out, data, lambda study: run(study, jobs))
    except KdkitError as error:
        raise click.ClickException(str(error)) from error
    opening = [
        f"# The protocol, tuned on {kind(data)} records",
        made_by("tune", data),
        f"Seeds {', '.join(map(str, TUNING_SEEDS))}, of which none is asked again. {about(data)}",
    ]
    write_tuning(chosen, tried, report or out, opening)
    click.echo(f"chosen: {chosen}\nwritten: {(report or out) / 'tuning.md'}")


@main.command()
@click.option("--seeds", callback=several(int), help="Some of the protocol's, to share the work; no page is written.")
@common
def ask(
    seeds: tuple[int, ...] | None, data: Path | None, out: Path, report: Path | None, threads: int | None, jobs: int
) -> None:
    """Train every row from every seed by the protocol that was chosen, and set them side by side."""
    protocol, fresh = CHOSEN[kind(data)], SEEDS[kind(data)]
    try:
        study = Study(out, asked_cells(seeds or fresh, protocol, data))
        run(study, jobs)
    except KdkitError as error:
        raise click.ClickException(str(error)) from error
    if seeds:
        return
    opening = [
        f"# Does distillation help? On {kind(data)} records",
        made_by("ask", data),
        f"The protocol ([how it was tuned](tuning.md)): {described(protocol)}. Seeds {', '.join(map(str, fresh))}. "
        f"{about(data)} {on_intervals(data)}",
    ]
    figures = figures_of(study, fresh, protocol)
    effects = effects_of(figures)
    if data:  # one test fold for all seeds
        effects = with_patients(effects, study, fresh, protocol)
    write_effects(figures, effects, report or out, opening)
    click.echo(f"written: {(report or out) / 'effect.md'}")


def run(study: Study, jobs: int) -> None:
    """Run the cells with a line for each. Raises ClickException at the first that fails."""
    began, trained, count = time.perf_counter(), 0, len(study.trials)
    for place, outcome in enumerate(study.run(jobs=jobs), 1):
        trained += outcome.state == "finished"
        left = (time.perf_counter() - began) / trained * (count - place) / 60 if trained else 0.0
        click.echo(f"[{place}/{count}] {line(study, outcome)}, about {left:.0f} min left")
        if outcome.error is not None:
            raise click.ClickException(f"{outcome.trial.name} failed; a second call goes on from there")


def described(protocol: Protocol) -> str:
    """Return the protocol in words."""
    return (
        f"{protocol.epochs} epochs, augmentation {protocol.augment}, kd_loss {protocol.kd_loss}, "
        f"{protocol.label_weight:g} of the loss from labels"
    )


def about(data: Path | None) -> str:
    """Return what the records of a run are."""
    if data is None:
        return f"{TRAIN} simulated records to learn from, other ones for each seed."
    return "The same records for each seed, and few of them: fold 0 of five is the test fold, fold 1 is chosen on."


def on_intervals(data: Path | None) -> str:
    """Return what the intervals tell of."""
    if data is None:
        return "An interval tells of other records and other seeds alike."
    return (
        "No net of the tuning was asked about the test fold. The interval beside a difference is of seeds alone; the "
        "last column draws the test records anew, and tells of other patients."
    )


def made_by(name: str, data: Path | None) -> str:
    """Return the command that makes the page."""
    return (
        f"Made by\n\n```console\npython -m reproductions.lrhnet.run_effect {name}{' --data DIR' if data else ''}\n```"
    )


if __name__ == "__main__":
    main()
