"""`kdkit run --seeds`: the same run with several seeds, in one folder, and one verdict over all of them."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdkit.cli.options import loggers_of
from kdkit.cli.repeat import command_record, save_command, without_options
from kdkit.cli.sweep_table import seeds_table
from kdkit.cli.trials import run_and_print
from kdkit.engine.distributed import process_group
from kdkit.engine.options import RunOptions
from kdkit.engine.storage.finished_run import read_metrics
from kdkit.errors import KdkitError, RunFolderError
from kdkit.plugins.recipe_file import RecipeFile
from kdkit.report.runs import read_runs
from kdkit.report.verdict import verdicts_of
from kdkit.study.study import Study
from kdkit.study.trial import Trial
from kdkit.utils.console import Status, make_console
from kdkit.utils.files import require_output_folder
from kdkit.utils.printable import echo
from kdkit.utils.reprs import describe_count

# Options of the whole command, not of the run of one seed, with the number of arguments that follow each.
_OF_ALL = {"--seeds": 1, "--seed": 1, "--jobs": 1, "--out": 1, "--resume": 0, "--force": 0, "--trust": 0}


def run_seeds(
    file: RecipeFile, settings: RunOptions, options: Mapping[str, Any], *, recipe: Mapping[str, Any], args: list[str]
) -> int:
    """Run a recipe with each seed that is not finished, and print the metrics and the verdict over the seeds.

    options: of `kdkit run`. recipe: options of recipe(). args: of the command, starting with the recipe file.
    Returns the exit code, 1 if a run failed. Raises KdkitError if options contradict each other.
    """
    seeds = _seeds(options["seeds"], options["seed"])
    if process_group.launched():
        raise KdkitError("torchrun divides one run among its processes; leave out --seeds, or torchrun")
    folder = options["out"] or Path("runs") / f"{file.path.stem}-seeds"
    require_output_folder(folder)
    settings.torch_device()  # if it is not available, raise once instead of in each run
    loggers = loggers_of(options["log"])
    shared = without_options(args, _OF_ALL)
    trials = [
        Trial(
            name=f"seed={seed}",
            recipe=file.module.recipe,
            options=recipe,
            seed=seed,
            command=command_record(file.path, [*shared, "--seed", str(seed)]),
        )
        for seed in seeds
    ]
    study, quiet, jobs = Study(folder, trials), options["quiet"], options["jobs"]
    study.require_comparable(settings)
    # Now, because the file may be edited while the seeds run, and the command may be killed.
    save_command(folder, command_record(file.path, args), file.path.read_bytes())
    settings = replace(settings, out=None, resume=False, progress=settings.progress and jobs == 1)
    results = study.run(settings, callbacks=loggers, jobs=jobs)
    title = f"{describe_count(len(trials), 'seed')} in {folder}"
    failed = run_and_print(study, results, title, jobs=jobs, quiet=quiet, notices=not settings.progress)
    failures = [*failed.values()]
    paths: list[Path] = []
    for trial in trials:
        if study.finished(trial.name) and trial.name not in failed:
            try:
                read_metrics(study.path(trial.name))
            except RunFolderError as error:  # damaged since
                failures.append(str(error))
            else:
                paths.append(study.path(trial.name))
    if paths and not quiet:
        failures += _print_verdict(paths)
        echo(f"saved to {folder}; to write a report: kdkit report {shlex.quote(str(folder))}")
    for failure in failures:
        echo(f"error: {failure}", err=True)
    return 1 if failures else 0


def _seeds(seeds: int | list[int], first: int) -> Sequence[int]:
    """Return the listed seeds, or a number of seeds counted from the first one."""
    if isinstance(seeds, int):
        if seeds < 1:
            raise KdkitError(f"--seeds must be a number of seeds, at least 1, or seeds such as 0,1,2; got {seeds}")
        return range(first, first + seeds)
    if first:
        raise KdkitError("--seed is the first seed of --seeds N; leave it out, or pass a number of seeds")
    if min(seeds) < 0 or len({*seeds}) < len(seeds):
        raise KdkitError(f"--seeds must be different integers of at least 0; got {','.join(map(str, seeds))}")
    return seeds


def _print_verdict(paths: Sequence[Path]) -> list[str]:
    """Print the metrics and the verdict of the runs, and return the problems found when reading them."""
    with Status() as status:
        status.show("comparing the seeds", terminal_only=True)
        runs, _left_out = read_runs(paths)
        verdicts = verdicts_of(runs)
    console = make_console()
    console.print()
    console.print(seeds_table(runs))
    lines = [line for verdict in verdicts for line in (verdict.headline, verdict.sentence)]
    for line in filter(None, [*lines, *dict.fromkeys(verdict.caveat for verdict in verdicts)]):
        console.print(line, markup=False, soft_wrap=True)
    return [problem for run in runs for problem in run.problems]
