"""What the commands that run a study of LRH-Net have in common: their options, a line per cell, and an estimate."""

import json
import time
from collections.abc import Callable, Mapping, Sized
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch

from kdkit import KdkitError, RunOptions, Study, Trial, TrialResult
from reproductions.lrhnet.comparisons import CM
from reproductions.lrhnet.grid import Run
from reproductions.lrhnet.plots import require_matplotlib
from reproductions.lrhnet.recipe import SIZES, records
from reproductions.lrhnet.time_estimate import seconds

SIZES_FILE = "records.json"
ELSEWHERE = ("out", "report", "threads", "jobs", "device", "dry_run")  # options that move no figure


def several(kind: Callable[[str], Any]) -> Callable[..., tuple[Any, ...] | None]:
    """Return what makes values of one word with commas in it, each once."""

    def read(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[Any, ...] | None:
        try:
            return None if value is None else tuple(dict.fromkeys(kind(each.strip()) for each in value.split(",")))
        except ValueError as error:
            raise click.BadParameter(f"expected values with commas, such as 0,1,2; got {value!r}") from error

    return read


def use_threads(_ctx: click.Context, _param: click.Parameter, value: int | None) -> int | None:
    """Let torch take so many threads."""
    if value is not None:
        torch.set_num_threads(value)
    return value


FILE = click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path)
ANY = click.Path(path_type=Path)
JOBS = click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Nets trained at once, each in a process."
)
OPTIONS = (
    click.option("--data", type=FOLDER, help="Of Challenge records; simulated ones if not given."),
    click.option("--out", type=ANY, default=Path("results"), show_default=True, help="The folder of all cells."),
    click.option("--report", type=ANY, help="Where tables and plots go; --out if not given."),
    click.option("--quick", is_flag=True, help="--size quick --folds 0 --seeds 0, unless these are given too."),
    click.option("--size", type=click.Choice(list(SIZES)), help="Of nets and signals; full if not given."),
    click.option("--folds", callback=several(int), help="To report on, one after another; 0,1,2,3,4 if not given."),
    click.option("--seeds", callback=several(int), help="0,1,2 if not given."),
    click.option("--folds-file", type=FILE, help="Of kdkit_ecg.make_folds; five folds are made if not given."),
    click.option("--epochs", type=click.IntRange(min=1), help="Of each net; those of the size if not given."),
    click.option("--preset", type=click.Choice(["corrected", "paper"]), default="corrected", show_default=True),
    click.option("--device", default="cpu", show_default=True),
    click.option(
        "--threads",
        type=click.IntRange(min=1),
        callback=use_threads,
        help="Of torch; as many as it takes if not given.",
    ),
    JOBS,
    click.option("--dry-run", is_flag=True, help="List the cells and about how long they take, and run nothing."),
)


def study_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of every study of LRH-Net."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def shared_by(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that all cells have."""
    return {
        "data": given["data"],
        "size": given["size"] or ("quick" if given["quick"] else "full"),
        "preset": given["preset"],
        "folds": given["folds_file"],
        "epochs": given["epochs"],
    }


def runs_of(given: Mapping[str, Any]) -> tuple[Run, ...]:
    """Return every fold with every seed."""
    folds = given["folds"] or ((0,) if given["quick"] else (0, 1, 2, 3, 4))
    seeds = given["seeds"] or ((0,) if given["quick"] else (0, 1, 2))
    return tuple(Run(*each) for each in product(folds, seeds))


def run(study: Study, given: Mapping[str, Any]) -> frozenset[str]:
    """Run the cells with a line for each, and return the names of those that are done, now or before."""
    require_matplotlib()
    began, trained, count = time.perf_counter(), 0, len(study.trials)
    ready = set()
    for place, outcome in enumerate(study.run(RunOptions(device=given["device"]), jobs=given["jobs"]), 1):
        trained += outcome.state == "finished"
        spent = time.perf_counter() - began
        left = f", about {spent / trained * (count - place) / 60:.0f} min left" if trained and place < count else ""
        click.echo(f"[{place}/{count}] {line(study, outcome)}{left}")
        if outcome.error is None:
            ready.add(outcome.trial.name)
            keep_sizes(study, outcome.trial)
    return frozenset(ready)


def line(study: Study, outcome: TrialResult) -> str:
    """Return what came of a cell, in a line."""
    name = outcome.trial.name
    if outcome.error is not None:
        kind = "" if isinstance(outcome.error, KdkitError) else f"{type(outcome.error).__name__}: "
        return f"{name} {outcome.state}: {kind}{' '.join(str(outcome.error).splitlines()[:2])}"
    figure = 100 * study.metrics(name)[outcome.trial.options["row"]][CM].value
    seconds = f" in {outcome.seconds:.0f} s" if outcome.state == "finished" else ""
    return f"{name} {outcome.state}{seconds}, challenge metric {figure:.2f}"


def keep_sizes(study: Study, trial: Trial) -> None:
    """Keep how many records the fold of a cell has; they are read for it only where the file was lost."""
    sizes, options = kept_sizes(study), trial.options
    if options["fold"] not in sizes:
        data = records(options["data"], options["size"], options["preset"], options["fold"], options["folds"])
        sizes[options["fold"]] = [
            len(split) for split in (data.train, data.validation, data.test) if isinstance(split, Sized)
        ]
        (study.folder / SIZES_FILE).write_text(json.dumps(sizes))


def kept_sizes(study: Study) -> dict[int, list[int]]:
    """Return how many records each fold has to learn from, to choose on and to report on, as far as they were read."""
    file = study.folder / SIZES_FILE
    return {int(fold): counts for fold, counts in json.loads(file.read_text()).items()} if file.exists() else {}


def list_cells(study: Study, data: Path | None) -> None:
    """Print each cell that is not done, and about how long all take."""
    open_cells = [trial for trial in study.trials if not study.finished(trial.name)]
    for trial in open_cells:
        click.echo(f"{trial.name}  after {', '.join(trial.dependencies) or 'nothing'}")
    options = study.trials[0].options
    headers = sum(1 for _ in data.rglob("*.hea")) if data else 0
    learned = headers * 3 // 5 if data else SIZES[options["size"]].records  # three of five folds
    hours = seconds(open_cells, learned) / 3600
    click.echo(
        f"{len(open_cells)} of {len(study.trials)} cells to train, from {learned:,} records or fewer: about {hours:.1f} "
        f"hours on this machine, with {torch.get_num_threads()} threads of its CPU"
    )


def command(main: click.Command, script: str, given: Mapping[str, Any]) -> str:
    """Return the command that makes the same anywhere: DIR stands for the folder of records."""
    words = ["python", "-m", f"reproductions.lrhnet.{Path(script).stem}"]
    default = {option.name: option.default for option in main.params}
    for name, value in given.items():
        told = ",".join(map(str, value)) if isinstance(value, tuple) else "DIR" if name == "data" and value else value
        if name in ELSEWHERE or told in (None, False, default[name]):
            continue
        words += [f"--{name.replace('_', '-')}", *([] if told is True else [getattr(told, "name", str(told))])]
    return " ".join(words)
