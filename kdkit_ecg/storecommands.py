"""The commands `kdkit ecg prepare` and `kdkit ecg store`: make prepared signals ahead, list and delete them."""

from pathlib import Path
from typing import Any

import click

from kdkit import DataError, did_you_mean

# What the commands do is imported when one of them runs: data sets take torch, which `kdkit --help` does without.

_FOLDER = click.Path(path_type=Path, file_okay=False)
_STORE = click.option("--store", "where", metavar="DIR", type=_FOLDER, help="Where stores are, if not in the cache.")


@click.command()
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


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1)
@click.option("--delete", "deleting", is_flag=True, help="Delete those named.")
@click.option("--all", "everything", is_flag=True, help="With --delete: all of them.")
@_STORE
def store(names: tuple[str, ...], deleting: bool, everything: bool, where: Path | None) -> None:
    """List the stores of prepared signals, or delete some: a run that needs one makes it anew."""
    from kdkit_ecg.disk import shown
    from kdkit_ecg.store import delete, records_in, size_of, stores_folder, stores_in

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
