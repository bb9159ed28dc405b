"""The command `kdkit sweep`: run a recipe with several values of its options, and compare them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from kdkit.cli.options import (
    AVERAGE_OVER,
    BASELINE,
    JOBS,
    LOG,
    PATH,
    loggers_of,
    net_option,
    run_fields,
    run_options,
    seeds_option,
)
from kdkit.cli.recipe_command import SweepCommand, arguments_of, default_options, file_of, run_arguments
from kdkit.errors import KdkitError
from kdkit.utils.printable import echo

# Options of the whole sweep, not of a single run, with the number of arguments that follow each.
_OF_ALL = {"--seeds": 1, "--average-over": 1, "--reference": 1, "--metric": 1, "--net": 1, "--out": 1, "--jobs": 1}


@click.command(cls=SweepCommand, short_help="Compare values of the options of a recipe over seeds.")
@click.argument("file", type=click.Path())
@seeds_option("3")
@AVERAGE_OVER
@click.option(
    "--reference",
    multiple=True,
    metavar="OPTION=VALUE",
    help="Compare each combination with the one that has this value, such as method=kd, instead of the best with the "
    "others; may be repeated.",
)
@click.option(
    "--metric", metavar="NAME", show_default="the first one of the recipe", help="Metric that compares the values."
)
@net_option()
@BASELINE
@click.option("--out", type=PATH, metavar="FOLDER", show_default="runs/<recipe>-sweep", help="Folder of all runs.")
@LOG
@JOBS
@click.option("--quiet", "-q", is_flag=True, help="Print only errors, warnings and the table.")
@run_options
@click.pass_context
def sweep(ctx: click.Context, /, **options: Any) -> int:
    """Run the recipe in FILE with several values of its options and several seeds, and compare the values.

        kdkit sweep recipe.py --temperature 2,4,8
        kdkit sweep recipe.py --width 8,16 --seeds 5 --jobs 2

    Every option of the recipe takes values separated by commas, and the sweep runs every combination. If values contain
    commas, repeat the option instead. `kdkit sweep FILE --help` lists the options.

    N seeds are counted from 0. Running the same command again skips finished runs. The exit code is 1 if a run failed.
    """
    from kdkit.cli.repeat import command_record, without_options
    from kdkit.cli.sweep_table import print_and_save
    from kdkit.cli.trials import run_and_print
    from kdkit.engine.distributed import process_group
    from kdkit.engine.options import RunOptions
    from kdkit.study.sweep import Sweep
    from kdkit.study.trial import Trial
    from kdkit.utils.console import Status
    from kdkit.utils.files import require_output_folder
    from kdkit.utils.memory import keep_freed_memory
    from kdkit.utils.reprs import describe_count

    if process_group.launched():
        raise KdkitError("torchrun divides one run among its processes; leave it out, and add --jobs to run several")
    file, settings = file_of(ctx), RunOptions(**run_fields(options))
    folder = options["out"] or Path("runs") / f"{file.path.stem}-sweep"
    require_output_folder(folder)
    settings.torch_device()  # if it is not available, raise once instead of in each run
    loggers = loggers_of(options["log"])
    grid = {parameter.name: values for parameter in file.parameters if (values := options[parameter.name])}
    swept = {f"--{name.replace('_', '-')}": 1 for name in grid}
    shared = without_options(arguments_of(ctx), {**_OF_ALL, **swept})
    defaults = default_options(file, ctx)

    def as_command(trial: Trial) -> Trial:
        """Return a trial with the options and the command of the `kdkit run` that repeats or resumes it alone."""
        arguments = [*shared, *run_arguments(file, trial.options), "--seed", str(trial.seed)]
        return replace(trial, options={**defaults, **trial.options}, command=command_record(file.path, arguments))

    comparison = Sweep(
        file.module.recipe,
        grid,
        folder=folder,
        seeds=options["seeds"],
        metric=options["metric"],
        net=options["net"],
        average_over=options["average_over"],
        reference=_reference(ctx, grid, options["reference"]),
        amend=as_command,
    )
    study = comparison.study
    counts = [
        describe_count(len(comparison.cells), "combination"),
        *(f"{len(grid[name])} of {name}" for name in comparison.average_over),
        describe_count(len(comparison.seeds), "seed"),
    ]
    title = f"{describe_count(len(study.trials), 'run')} in {study.folder}: {' x '.join(counts)}"
    trials = comparison.run(settings, callbacks=loggers, jobs=options["jobs"])
    keep_freed_memory()  # as for a single run
    failed = run_and_print(study, trials, title, jobs=options["jobs"], quiet=options["quiet"], notices=True)
    failures = [*failed.values()]
    if len(failed) < len(study.trials):
        try:
            with Status(enabled=not options["quiet"]) as status:
                status.show("comparing the options", terminal_only=True)  # takes minutes if a metric is slow
                results = comparison.results()
        except KdkitError as error:  # for example, the runs with the compared net failed, for reasons printed below
            failures.append(str(error))
        else:
            failures += print_and_save(results, study.folder)
    for failure in failures:
        echo(f"error: {failure}", err=True)
    return 1 if failures else 0


def _reference(ctx: click.Context, grid: Mapping[str, Sequence[Any]], texts: Sequence[str]) -> dict[str, Any]:
    """Return the values of `--reference`. Raises UsageError if one is not OPTION=VALUE, with an option of the sweep."""
    reference: dict[str, Any] = {}
    options = {option.name: option for option in ctx.command.params if option.name in grid}
    for text in texts:
        name, equals, value = text.removeprefix("--").partition("=")
        option = options.get(name.replace("-", "_"))
        values: tuple[Any, ...] = option.process_value(ctx, (value,)) if option is not None and equals else ()
        if option is None or len(values) != 1 or option.name in reference:
            names = " or ".join(f"{name}=VALUE" for name in grid) or "an option that this command sweeps"
            raise click.UsageError(f"--reference must be {names}, with one value, once; got {text!r}")
        reference[str(option.name)] = values[0]
    return reference
