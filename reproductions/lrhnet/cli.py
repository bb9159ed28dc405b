"""Shared by the commands that run a study of LRH-Net: their options, the progress of trials, and a time estimate."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sized
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch

from kdkit import KdkitError, RunOptions, Study, Trial, TrialResult
from kdkit_ecg.utils.record_files import find_record_files
from reproductions.lrhnet.comparisons import CM
from reproductions.lrhnet.grid import Run
from reproductions.lrhnet.plots import require_matplotlib
from reproductions.lrhnet.recipe import SIZES, DataOptions, read_data
from reproductions.lrhnet.time_estimate import seconds

SPLIT_SIZES = "records.json"
NOT_IN_COMMAND = ("out", "report", "threads", "jobs", "device", "dry_run")  # options that do not affect results

FILE = click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path)
ANY_PATH = click.Path(path_type=Path)


def comma_separated(convert: Callable[[str], Any]) -> Callable[..., tuple[Any, ...] | None]:
    """Return an option callback that splits a value at its commas and drops duplicates."""

    def read(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[Any, ...] | None:
        try:
            return None if value is None else tuple(dict.fromkeys(convert(word.strip()) for word in value.split(",")))
        except ValueError as error:
            raise click.BadParameter(f"expected values with commas, such as 0,1,2; got {value!r}") from error

    return read


def set_threads(_ctx: click.Context, _param: click.Parameter, value: int | None) -> int | None:
    """Set the number of torch's threads, as an option callback."""
    if value is not None:
        torch.set_num_threads(value)
    return value


# Options of all three commands.
DATA = click.option("--data", type=FOLDER, help="A folder of Challenge records; by default they are simulated.")
OUT = click.option("--out", type=ANY_PATH, default=Path("results"), show_default=True, help="The folder of all trials.")
THREADS = click.option(
    "--threads", type=click.IntRange(min=1), callback=set_threads, help="Threads of torch; by default its own choice."
)
JOBS = click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Trials at once, each in a process."
)
# Options of the tables and of the ladders.
OPTIONS = (
    DATA,
    OUT,
    click.option("--report", type=ANY_PATH, help="The folder of tables and plots; by default --out."),
    click.option("--quick", is_flag=True, help="--size quick --folds 0 --seeds 0, unless these are given too."),
    click.option("--size", type=click.Choice(list(SIZES)), help="Of networks and signals; by default full."),
    click.option("--folds", callback=comma_separated(int), help="Folds to test on; by default 0,1,2,3,4."),
    click.option("--seeds", callback=comma_separated(int), help="By default 0,1,2."),
    click.option("--folds-file", type=FILE, help="From kdkit_ecg.make_folds; by default there are five folds."),
    click.option("--epochs", type=click.IntRange(min=1), help="Of each network; by default those of the size."),
    click.option("--preset", type=click.Choice(["corrected", "paper"]), default="corrected", show_default=True),
    click.option("--device", default="cpu", show_default=True),
    THREADS,
    JOBS,
    click.option("--dry-run", is_flag=True, help="List the trials and about how long they take, and run none."),
)


def add_options(*options: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds options to a command, in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):  # the last decorator is applied first
            command = option(command)
        return command

    return decorate


def shared_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the recipe that all trials have."""
    return {
        "data": options["data"],
        "size": options["size"] or ("quick" if options["quick"] else "full"),
        "preset": options["preset"],
        "folds": options["folds_file"],
        "epochs": options["epochs"],
    }


def runs_of(options: Mapping[str, Any]) -> tuple[Run, ...]:
    """Return every fold with every seed."""
    folds = options["folds"] or ((0,) if options["quick"] else (0, 1, 2, 3, 4))
    seeds = options["seeds"] or ((0,) if options["quick"] else (0, 1, 2))
    return tuple(Run(fold, seed) for fold, seed in product(folds, seeds))


def run_study(study: Study, options: Mapping[str, Any]) -> frozenset[str]:
    """Run the trials and return the names of those that are finished, in this call or before."""
    require_matplotlib()
    ready = set()
    for result in results_with_progress(study, RunOptions(device=options["device"]), options["jobs"]):
        if result.error is None:
            ready.add(result.trial.name)
            save_split_sizes(study, result.trial)
    return frozenset(ready)


def results_with_progress(study: Study, options: RunOptions | None, jobs: int) -> Iterator[TrialResult]:
    """Run the trials of a study, and print a line for each with the time that remains."""
    start, trained, count = time.perf_counter(), 0, len(study.trials)
    for number, result in enumerate(study.run(options, jobs=jobs), 1):
        trained += result.state == "finished"  # skipped ones take no time, so they are not in the mean
        per_trial = (time.perf_counter() - start) / max(1, trained)
        remaining = f", about {per_trial * (count - number) / 60:.0f} min left" if trained and number < count else ""
        click.echo(f"[{number}/{count}] {summary_line(study, result)}{remaining}")
        yield result


def summary_line(study: Study, result: TrialResult) -> str:
    """Return the result of a trial in one line: its challenge metric, or its error."""
    name = result.trial.name
    if result.error is not None:
        # kdkit's own messages are clear without the name of the class.
        kind = "" if isinstance(result.error, KdkitError) else f"{type(result.error).__name__}: "
        return f"{name} {result.state}: {kind}{' '.join(str(result.error).splitlines()[:2])}"
    metric = 100 * study.metrics(name)[result.trial.options["row"]][CM].value
    duration = f" in {result.seconds:.0f} s" if result.state == "finished" else ""
    return f"{name} {result.state}{duration}, challenge metric {metric:.2f}"


def save_split_sizes(study: Study, trial: Trial) -> None:
    """Save the number of records in each split of a trial's fold; the records are read only if they are unknown."""
    sizes, options = load_split_sizes(study), trial.options
    if options["fold"] not in sizes:
        arguments = (options[key] for key in ("data", "size", "preset", "fold", "folds"))
        data = read_data(DataOptions(*arguments))
        splits = (data.train, data.validation, data.test)
        sizes[options["fold"]] = [len(split) for split in splits if isinstance(split, Sized)]
        (study.folder / SPLIT_SIZES).write_text(json.dumps(sizes))


def load_split_sizes(study: Study) -> dict[int, list[int]]:
    """Return the saved numbers of records for training, validation and testing, by fold."""
    file = study.folder / SPLIT_SIZES
    return {int(fold): counts for fold, counts in json.loads(file.read_text()).items()} if file.exists() else {}


def list_trials(study: Study, data: Path | None) -> None:
    """Print each trial that is not finished, and about how long all of them take."""
    unfinished = [trial for trial in study.trials if not study.finished(trial.name)]
    for trial in unfinished:
        click.echo(f"{trial.name}  after {', '.join(trial.dependencies) or 'nothing'}")
    options = study.trials[0].options
    # Of real records, three of five folds at most: those without a scored class are left out later.
    headers = len(find_record_files(data).headers) if data else 0
    records = headers * 3 // 5 if data else SIZES[options["size"]].records
    hours = seconds(unfinished, records) / 3600
    click.echo(
        f"{len(unfinished)} of {len(study.trials)} trials to train, on at most {records:,} records: about {hours:.1f} "
        f"hours on this machine, with {torch.get_num_threads()} threads of its CPU"
    )


def command_line(main: click.Command, script: str, options: Mapping[str, Any]) -> str:
    """Return the command with all options that affect results; DIR stands for the folder of records."""
    words = ["python", "-m", f"reproductions.lrhnet.{Path(script).stem}"]
    defaults = {option.name: option.default for option in main.params}
    for name, value in options.items():
        if isinstance(value, tuple):
            value = ",".join(map(str, value))
        elif name == "data" and value:
            value = "DIR"
        if name in NOT_IN_COMMAND or value in (None, False, defaults[name]):
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:  # a flag has no value
            words.append(getattr(value, "name", str(value)))  # of a path the name alone
    return " ".join(words)
