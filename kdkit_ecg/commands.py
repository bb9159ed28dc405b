"""The commands `kdkit ecg fetch`, `kdkit ecg doctor` and `kdkit ecg folds`, beside those of the store."""

import json
import os
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from kdkit import DataError
from kdkit.errors import did_you_mean
from kdkit_ecg.download.releases import RELEASES

# What the commands do is imported when one of them runs: it takes requests or torch, which `kdkit --help` does without.


def _processors() -> int:
    return os.cpu_count() or 1


@click.group()
def ecg() -> None:
    """ECG data: fetch a release, see what is in a folder, part its records in folds, and prepare them."""


@ecg.command()
@click.argument("release", type=click.Choice([*RELEASES]))
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option("--jobs", type=click.IntRange(1, 64), default=8, show_default=True, help="Files at a time.")
@click.option(
    "--only", multiple=True, help="A folder, or a pattern of paths such as '*/georgia/*.hea'; may be repeated."
)
@click.option("--base-url", "base", metavar="URL", help="A mirror: the address that has SHA256SUMS.txt.")
@click.option("--verify", is_flag=True, help="Read again all that is there, also what was found right before.")
@click.option("--dry-run", is_flag=True, help="Say how many files and bytes it would be, and write nothing.")
def fetch(release: str, base: str | None, dry_run: bool, **options: Any) -> None:
    """Fetch a release of PhysioNet into DIR, checked against its SHA-256 sums.

    Run the same command again to go on, to try what failed, or to find out whether all is there and right.
    """
    from kdkit_ecg.download import DownloadRequest, failures
    from kdkit_ecg.download import fetch as fetch_release

    console = _console()
    try:
        fetched = fetch_release(DownloadRequest(base=base or RELEASES[release], dry_run=dry_run, **options), console)
    except KeyboardInterrupt:
        click.echo("\nwhat came is kept; run the same command again to go on", err=True)
        raise
    if not dry_run:
        console.print(fetched.told, soft_wrap=True)
    if fetched.failed:
        raise DataError(failures(fetched))


@ecg.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--jobs", type=click.IntRange(min=1), default=_processors, show_default="one per processor", help="Processes."
)
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write all of it there too.")
@click.option("--all", "all_names", is_flag=True, help="Name every record with what was found, not the first few.")
@click.pass_context
def doctor(ctx: click.Context, folder: Path, jobs: int, json_file: Path | None, all_names: bool) -> None:
    """Read every record in DIR: what is there, how many of each class, what is bad and what is odd.

    The exit code is 0 where no record is bad, 1 where any is: the loaders leave it out, or its signal is damaged.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from kdkit_ecg.doctor import as_json, show, survey

    console = _console()
    columns = (TextColumn("records"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("")
        found = survey(folder, jobs, lambda total: progress.update(task, total=total), lambda: progress.advance(task))
    if json_file is not None:
        try:
            json_file.write_text(json.dumps(as_json(found), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise DataError(f"{json_file} cannot be written: {error.strerror}") from error
    show(found, console, all_names=all_names)
    ctx.exit(1 if found.bad else 0)


@ecg.command()
@click.argument(
    "folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False)
)
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The CSV file to write.")
@click.option("--year", type=click.Choice(["2020", "2021"]), default="2020", show_default=True, help="Whose classes.")
@click.option("--keep", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Folds in which to stay.")
@click.option("-k", type=click.IntRange(min=3), default=5, show_default=True, help="How many.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--normalised-units", is_flag=True, help="Also take records in standard deviations (NU).")
def folds(folders: tuple[Path, ...], out: Path, year: str, keep: Path | None, **options: Any) -> None:
    """Part the records of one DIR or several in stratified folds, patients whole, and write them to a file.

    A run names the file: Challenge2020(DIR, folds=FILE, fold=0), so that two people train on the same records.
    """
    from kdkit_ecg.datasets import make_folds

    made = make_folds(list(folders), year=2020 if year == "2020" else 2021, keep=keep, **options)
    try:
        made.write(out)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}") from error
    _console().print(f"{made.summary}\nwritten: {out}")


def _console() -> Console:
    """Return a console as wide as the terminal; where there is none, wide enough for tables to keep their form."""
    console = Console(highlight=False, emoji=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, emoji=False, markup=False, width=120)


# What the commands do is imported when one of them runs: data sets take torch, which `kdkit --help` does without.

_FOLDER = click.Path(path_type=Path, file_okay=False)
_STORE = click.option("--store", "where", metavar="DIR", type=_FOLDER, help="Where stores are, if not in the cache.")


@ecg.command()
@click.argument(
    "folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False)
)
@click.option(
    "--as",
    "kind",
    type=click.Choice(["challenge-2020", "challenge-2021", "ptb-xl"]),
    default="challenge-2020",
    show_default=True,
    help="What the records are read as.",
)
@click.option("--paper", is_flag=True, help="As LRH-Net's authors prepare them (Challenge2020.paper).")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Hz; the data set's own if not given.")
@click.option("--band", nargs=2, type=float, help="Low and high in Hz; 0.5 47 if not given.")
@click.option("--no-band", is_flag=True, help="No band-pass.")
@click.option("--scaling", type=click.Choice(["zscore", "raw"]), help="zscore if not given.")
@click.option("--resampling", type=click.Choice(["polyphase", "linear"]), help="polyphase if not given.")
@click.option("--normalised-units", is_flag=True, help="Also take records in standard deviations (NU).")
@click.option("--jobs", type=click.IntRange(1, 256), help="Processes; chosen by the processors if not given.")
@click.option("--verify", is_flag=True, help="Read all that is there, and prepare anew what is damaged.")
@_STORE
def prepare(kind: str, folders: tuple[Path, ...], where: Path | None, jobs: int | None, **options: Any) -> None:
    """Prepare the records of one DIR or several, so that runs on them need not; run it again to go on.

    Give the DIRs and options that the run has: another rate, band, scaling or resampling is another store.
    """
    verify = options.pop("verify")
    data = _data(kind, folders, {**options, "store": where or "auto"})
    try:
        store, came = data.prepare(processes=jobs, verify=verify)
    except KeyboardInterrupt:
        click.echo("\nwhat is prepared is kept; run the same command again to go on", err=True)
        raise
    click.echo(data.summary)
    click.echo(f"{came:,} prepared now, in {store}")


@ecg.command()
@click.argument("names", metavar="NAME...", nargs=-1)
@click.option("--delete", "deleting", is_flag=True, help="Delete those named.")
@click.option("--all", "everything", is_flag=True, help="With --delete: all of them.")
@_STORE
def store(names: tuple[str, ...], deleting: bool, everything: bool, where: Path | None) -> None:
    """List the stores of prepared signals, or delete some: a run that needs one makes it anew."""
    from kdkit_ecg.store import delete, records_in, size_of, stores_folder, stores_in
    from kdkit_ecg.utils.disk import shown

    folder = stores_folder(where or "auto")
    places = {place.path.name: place for place in stores_in(folder)}
    for name in names:
        if name not in places:
            raise DataError(f"{folder} has no store {name!r}; {did_you_mean(name, places)}")
    if deleting != bool(names or everything):
        raise click.UsageError("give --delete and the names of stores, or --delete --all; nothing of it lists them")
    for name in places if everything else names:
        delete(places[name])
        click.echo(f"deleted {name}")
    if deleting:
        return
    for name, place in places.items():
        told = ", ".join(f"{key} {value}" for key, value in place.preparation.items())
        click.echo(f"{name}  {records_in(place):,} records, {shown(size_of(place))}\n  of {', '.join(place.sources)}")
        click.echo(f"  {told}")
    click.echo(f"{len(places)} in {folder}")


def _data(kind: str, folders: tuple[Path, ...], options: dict[str, Any]) -> Any:
    """Return the data set that a run would make with these options, all records in one split."""
    from kdkit_ecg.datasets import PTBXL, Challenge2020, Challenge2021

    paper, bandless, units = (options.pop(name) for name in ("paper", "no_band", "normalised_units"))
    options = {name: value for name, value in options.items() if value is not None}
    if bandless and options.get("band"):
        raise click.UsageError("--band and --no-band exclude each other: give one of the two")
    if bandless:
        options["band"] = None
    if kind == "ptb-xl":
        if paper or units:
            raise click.UsageError("--paper and --normalised-units are for the Challenges")
        return PTBXL(folders, **options)
    challenge = Challenge2020 if kind == "challenge-2020" else Challenge2021
    make = challenge.paper if paper else challenge
    return make(folders, shares=(1.0, 0.0, 0.0), normalised_units=units, **options)  # type: ignore[arg-type]  # several
