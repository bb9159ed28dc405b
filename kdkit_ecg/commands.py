"""The commands `kdkit ecg fetch`, `doctor`, `folds`, `prepare` and `store`."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click

from kdkit import DataError
from kdkit.errors import did_you_mean
from kdkit.utils.console import make_console
from kdkit.utils.files import output_errors, require_output, require_output_folder, write_output
from kdkit.utils.paths import UserPath
from kdkit.utils.printable import echo, printable
from kdkit.utils.processes import usable_cores
from kdkit_ecg.leads import LEADS, standard_names

# Each command imports its implementation when it runs: requests and torch would slow down `kdkit --help`.

_FIGSHARE = "https://api.figshare.com/v2/articles/"

# The address of each release, and its records with lists in JSON. A published version never changes, so files from an
# earlier run can be verified with its list of checksums.
RELEASES: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "challenge-2020": ("https://physionet.org/files/challenge-2020/1.0.2/", ()),
        "challenge-2021": ("https://physionet.org/files/challenge-2021/1.0.3/", ()),
        "ptb-xl": ("https://physionet.org/files/ptb-xl/1.0.3/", ()),
        # CODE-15% (Ribeiro et al. 2021); SPH (Liu et al. 2022): attributes, records, codes and rules, each an article;
        # ZZU-pECG (Tan et al. 2025).
        "code-15": ("https://zenodo.org/api/records/", ("4916206",)),
        "sph": (
            _FIGSHARE,
            ("17912441/versions/1", "17912444/versions/1", "17912507/versions/1", "19738468/versions/1"),
        ),
        "zzu-pecg": (_FIGSHARE, ("27078763/versions/1",)),
    }
)

# Options and arguments that several commands share.
_NEW_FOLDER = UserPath(file_okay=False)
_FOLDER = UserPath(exists=True, file_okay=False)
_FILE = UserPath(dir_okay=False)
_folders = click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=_FOLDER)
_normalised_units = click.option(
    "--normalised-units", is_flag=True, help="Include records in standard deviations (NU)."
)
_store_location = click.option(
    "--store",
    "location",
    metavar="DIR",
    type=_NEW_FOLDER,
    show_default="in the user's cache",
    help="Folder of the stores of prepared signals.",
)


@click.group(short_help="ECG data: fetch, examine, make folds, prepare.")
def ecg() -> None:
    """ECG data: fetch a release, examine a folder, make folds, and prepare records."""


@ecg.command(short_help="Fetch a release, and verify its checksums.")
@click.argument("release", type=click.Choice([*RELEASES]))
@click.argument("folder", metavar="DIR", type=_NEW_FOLDER)
@click.option("--dry-run", is_flag=True, help="Print the number of files and bytes to fetch, without writing anything.")
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN",
    help="Fetch only a folder, or the paths that match a pattern such as '*/georgia/*.hea'; may be repeated.",
)
@click.option(
    "--jobs", type=click.IntRange(1, 64), default=8, show_default=True, metavar="N", help="Number of files at a time."
)
@click.option(
    "--base-url", metavar="URL", help="Address of a mirror, the folder with SHA256SUMS.txt or the JSON of the records."
)
@click.option("--verify", is_flag=True, help="Read all existing files again, including those verified before.")
def fetch(release: str, base_url: str | None, dry_run: bool, **options: Any) -> None:
    """Fetch a release from PhysioNet, Zenodo or figshare into DIR and verify its checksums.

        kdkit ecg fetch challenge-2020 data/challenge-2020 --dry-run
        kdkit ecg fetch challenge-2020 data/challenge-2020

    Run the same command again to resume it, to retry failed files, or to check that all files are correct.
    """
    from kdkit_ecg.download import DownloadRequest
    from kdkit_ecg.download import fetch as fetch_release

    console = make_console(markup=False)
    address, records = RELEASES[release]
    request = DownloadRequest(base=base_url or address, records=records, dry_run=dry_run, **options)
    try:
        report = fetch_release(request, console)
    except KeyboardInterrupt:
        echo("\nall fetched files are kept; run the same command again to resume", err=True)
        raise
    if not dry_run:
        console.print(report.summary, soft_wrap=True)
    if report.failed:
        raise DataError(report.failures)


@ecg.command(short_help="Report classes, bad records and odd records.")
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.option("--all", "all_names", is_flag=True, help="Name every record with a finding, not only the first few.")
@click.option("--json", "json_file", type=_FILE, metavar="FILE", help="Also write the whole report to this JSON file.")
@click.option(
    "--leads",
    metavar="NAME,...",
    show_default="the twelve standard leads",
    help="Leads that each record needs, such as I,II,V1.",
)
@click.option(
    "--own-labels",
    is_flag=True,
    help="The labels are in a table, so no record needs a scored code or a name of its own.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=usable_cores,
    metavar="N",
    show_default="usable cores",
    help="Number of processes.",
)
@click.pass_context
def doctor(
    ctx: click.Context, /, folder: Path, jobs: int, json_file: Path | None, all_names: bool, **options: Any
) -> None:
    """Read every record in DIR, and report the number in each class, bad records and odd records.

        kdkit ecg doctor data/challenge-2020
        kdkit ecg doctor data/challenge-2020 --all --json report.json

    The exit code is 1 if any record is bad, which means that the loaders exclude it or that its signal is damaged.
    Otherwise it is 0.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from kdkit_ecg.doctor import print_survey, survey, survey_to_json

    leads = standard_names(name.strip() for name in (options.pop("leads") or ",".join(LEADS)).split(","))
    console = make_console(markup=False)
    if json_file is not None:
        require_output(json_file, "--json FILE")
    columns = (TextColumn("records"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("")
        on_start, on_record = lambda total: progress.update(task, total=total), lambda: progress.advance(task)
        result = survey(folder, jobs, on_start, on_record, leads=leads, **options)
    if json_file is not None:
        write_output(json_file, json.dumps(survey_to_json(result), indent=1) + "\n", option="--json FILE")
    print_survey(result, console, all_names=all_names)
    ctx.exit(1 if result.bad else 0)


@ecg.command(short_help="Write stratified folds of records to a file.")
@_folders
@click.option("--out", required=True, type=_FILE, metavar="FILE", help="CSV file to write.")
@click.option("-k", type=click.IntRange(min=3), default=5, show_default=True, metavar="N", help="Number of folds.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Seed of the folds."
)
@click.option(
    "--year",
    type=click.Choice(["2020", "2021"]),
    default="2020",
    show_default=True,
    help="Challenge whose classes have the same proportions in every fold.",
)
@click.option(
    "--keep",
    type=UserPath(exists=True, dir_okay=False),
    metavar="FILE",
    help="Earlier folds file; its records stay in their folds.",
)
@_normalised_units
def folds(folders: tuple[Path, ...], out: Path, year: str, keep: Path | None, **options: Any) -> None:
    """Make stratified folds of the records in one or several DIRs, by patient, and write them to a file.

        kdkit ecg folds data/challenge-2020 --out folds.csv

    Use the file with Challenge2020(DIR, folds=FILE, fold=0), so that different runs train on the same records.
    """
    from kdkit_ecg.datasets import make_folds

    require_output(out)
    new_folds = make_folds(list(folders), year=2020 if year == "2020" else 2021, keep=keep, **options)
    with output_errors(out, "--out FILE"):
        new_folds.write(out)
    make_console(markup=False).print(f"{new_folds.summary}\nwritten: {out}")


@ecg.command(short_help="Prepare records before the first run.")
@_folders
@click.option(
    "--as",
    "dataset",
    type=click.Choice(["challenge-2020", "challenge-2021", "ptb-xl"]),
    default="challenge-2020",
    show_default=True,
    help="Data set that the records belong to.",
)
@click.option("--paper", is_flag=True, help="Prepare as the authors of LRH-Net do (Challenge2020.paper).")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="HZ",
    show_default="that of the data set",
    help="Sampling rate of the prepared signals in Hz.",
)
@click.option(
    "--band",
    nargs=2,
    type=float,
    metavar="HZ HZ",
    show_default="0.5 47",
    help="Lowest and highest frequency of the band-pass filter in Hz.",
)
@click.option("--no-band", is_flag=True, help="Use no band-pass filter.")
@click.option(
    "--scaling",
    type=click.Choice(["zscore", "raw"]),
    show_default="zscore",
    help="Scaling of each lead: zero mean and unit variance, or none (mV).",
)
@click.option(
    "--resampling",
    type=click.Choice(["polyphase", "linear"]),
    show_default="polyphase",
    help="Resampling method; the authors of LRH-Net use linear.",
)
@_normalised_units
@click.option(
    "--jobs", type=click.IntRange(1, 256), metavar="N", show_default="by the usable cores", help="Number of processes."
)
@click.option("--verify", is_flag=True, help="Read the whole store, and prepare damaged records again.")
@_store_location
def prepare(dataset: str, folders: tuple[Path, ...], location: Path | None, **options: Any) -> None:
    """Prepare the records in one or several DIRs before the first run. Run it again to resume.

        kdkit ecg prepare data/challenge-2020
        kdkit ecg prepare data/ptb-xl --as ptb-xl --rate 500

    Use the DIRs and options of the run: a different rate, band, scaling or resampling needs another store.
    """
    from kdkit_ecg.datasets import PTBXL, Challenge2020, Challenge2021
    from kdkit_ecg.store import stores_folder

    jobs, verify, paper, no_band, normalised_units = (
        options.pop(name) for name in ("jobs", "verify", "paper", "no_band", "normalised_units")
    )
    # Options that are not given keep the default of the data set.
    options = {"store": location or "auto", **{name: value for name, value in options.items() if value is not None}}
    if no_band and "band" in options:
        raise click.UsageError("--band and --no-band exclude each other; give one of the two")
    if no_band:
        options["band"] = None
    stores = stores_folder(options["store"])
    if not stores.exists():  # otherwise the store of these records may exist, and is only read if it is complete
        require_output_folder(stores, "--store DIR")
    data: Any
    if dataset == "ptb-xl":
        if paper or normalised_units:
            raise click.UsageError("--paper and --normalised-units are options of the Challenges, not of ptb-xl")
        data = PTBXL(folders, **options)
    else:
        challenge: Any = Challenge2020 if dataset == "challenge-2020" else Challenge2021
        make = challenge.paper if paper else challenge
        data = make(folders, shares=(1.0, 0.0, 0.0), normalised_units=normalised_units, **options)
    try:
        store_folder, prepared = data.prepare(processes=jobs, verify=verify)
    except KeyboardInterrupt:
        echo("\nall prepared records are kept; run the same command again to resume", err=True)
        raise
    echo(data.summary)
    echo(f"{prepared:,} records prepared now, in {store_folder}")


@ecg.command(short_help="List or delete stores of prepared signals.")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--delete", is_flag=True, help="Delete the named stores.")
@click.option("--all", "all_stores", is_flag=True, help="With --delete: delete all stores.")
@_store_location
def store(names: tuple[str, ...], delete: bool, all_stores: bool, location: Path | None) -> None:
    """List the stores of prepared signals, or delete some.

        kdkit ecg store
        kdkit ecg store --delete --all

    A run that needs a deleted store prepares it again.
    """
    from kdkit.utils.reprs import format_bytes
    from kdkit_ecg.store import stores_folder, stores_in

    folder = stores_folder(location or "auto")
    stores = {store.path.name: store for store in stores_in(folder)}
    for name in names:
        if name not in stores:
            raise DataError(f"{folder} has no store {name!r}; {did_you_mean(name, stores)}")
    if delete != bool(names or all_stores):
        raise click.UsageError(
            "give --delete with names of stores or with --all; without any of these, stores are listed"
        )
    if delete:
        for name in stores if all_stores else names:
            stores[name].delete()
            echo(f"deleted {printable(name)}")
        return
    for name, entry in stores.items():
        preparation = ", ".join(f"{option} {value}" for option, value in entry.preparation.items())
        echo(f"{printable(name)}  {entry.record_count:,} records, {format_bytes(entry.size)}")
        echo(f"  of {', '.join(entry.sources)}\n  {preparation}")
    echo(f"{len(stores)} in {folder}")
