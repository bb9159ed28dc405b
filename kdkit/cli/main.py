"""The command line: the commands of kdkit, and those that plugins add."""

import io
import json
import math
import os
import signal
import sys
import traceback
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import click

from kdkit import __version__
from kdkit.cli import bench as benchmark_scripts
from kdkit.cli.card import card
from kdkit.cli.export import export
from kdkit.cli.group import CommandGroup, completion
from kdkit.cli.new import new
from kdkit.cli.options import (
    DEVICE,
    LOG,
    PATH,
    PRECISION,
    SEED,
    TEACHER_CACHE,
    loggers_of,
    read_seeds,
    run_fields,
    run_options,
)
from kdkit.cli.recipe_command import RecipeCommand, RunCommand, arguments_of, file_of, recipe_options
from kdkit.cli.sweep import sweep
from kdkit.errors import (
    KdkitError,
    RemoteRankError,
    RunFolderError,
    Terminated,
    shortened,
    shows_tracebacks,
)
from kdkit.plugins.manager import PluginWarning, installed
from kdkit.plugins.recipe_file import read_recipe_file
from kdkit.utils.printable import LINE_CHARACTERS, echo, printable

# Commands import most modules when they are called: these import torch, which takes seconds, and `kdkit --help` does
# not need it.


def main() -> None:
    """Run the command line and exit with its exit code."""
    # Warnings and errors that nobody expected may contain names from data too.
    format_warning = warnings.formatwarning

    def format_printable(message: Warning | str, category: type[Warning], *args: Any, **options: Any) -> str:
        is_line = issubclass(category, PluginWarning)  # the file and line would be those of kdkit
        text = f"warning: {message}\n" if is_line else format_warning(message, category, *args, **options)
        return printable(text, keep=LINE_CHARACTERS)

    warnings.formatwarning = format_printable
    sys.excepthook = lambda *error: echo("".join(traceback.format_exception(*error)).rstrip("\n"), err=True)
    sys.exit(call(sys.argv[1:]))


def call(args: list[str]) -> int:
    """Run the command line with these arguments and return its exit code.

    The exit code is 2 for a KdkitError, which is printed without a traceback unless KDKIT_TRACEBACK is set, 130 for
    Ctrl-C, and 143 for SIGTERM.
    """
    try:
        with _process_group():
            add_plugin_commands()
            code = cli.main(args, prog_name="kdkit", standalone_mode=False)
            return code if isinstance(code, int) else 0
    except RemoteRankError:  # the process that had the error prints it
        return 2
    except KdkitError as error:
        if shows_tracebacks():
            echo("".join(traceback.format_exception(error)), err=True)
        echo(f"error: {error}", err=True)
        return 2
    except OSError as error:
        # Of a path in an argument, such as a name that is too long, or in a folder that this user may not enter.
        if not error.filename or not any(str(error.filename) in arg for arg in args):
            raise
        if shows_tracebacks():
            echo("".join(traceback.format_exception(error)), err=True)
        echo(f"error: {shortened(str(error.filename))} cannot be read: {error.strerror}; pass another path", err=True)
        return 2
    except click.ClickException as error:
        message = io.StringIO()  # click would print an argument as it is, such as the name of a missing file
        error.show(message)
        echo(message.getvalue().rstrip("\n"), err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort, Terminated) as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would print a traceback at the exit of Python
        echo("stopped", err=True)
        return 143 if isinstance(error, Terminated) else 130  # 128 + the number of the signal, as in shells


def _process_group() -> AbstractContextManager[None]:
    """Return the process group of torchrun as a context, so that one process prints an error of several."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return nullcontext()
    from kdkit.engine.distributed import joined

    return joined()


def add_plugin_commands() -> None:
    """Load the plugins and let each add its commands. One that fails costs a line of warning and its own commands."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plugins = installed()
    for warning in caught:
        echo(f"warning: {warning.message}", err=True)
    for hook in plugins.hook.register_commands.get_hookimpls():
        try:
            hook.function(*([cli] if hook.argnames else []))
        except Exception as error:  # the other commands must still work
            echo(
                f"warning: plugin {hook.plugin_name!r} could not add its commands: {type(error).__name__}: {error}",
                err=True,
            )


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="kdkit")
def cli() -> None:
    """Knowledge distillation in PyTorch: check, run and compare recipes."""


cli.add_command(sweep)
cli.add_command(completion)
cli.add_command(new)
cli.add_command(card)
cli.add_command(export)


@cli.command(cls=RunCommand, short_help="Train the stages of a recipe, and evaluate its nets.")
@click.argument("file", type=click.Path())
@click.option("--out", type=PATH, help="Run folder; runs/<recipe>-<time> if not given.")
@click.option("--resume", is_flag=True, help="Resume the run in --out; or --resume FOLDER, without FILE.")
@click.option("--force", is_flag=True, help="Resume it although its recipe, data or versions have changed.")
@click.option("--trust", is_flag=True, help="With --resume FOLDER: execute a recipe file that changed or is not yours.")
@SEED
@click.option(
    "--seeds",
    callback=read_seeds,
    metavar="N|SEED,...",
    help="Run N times, with seeds from --seed on, or with these seeds, in one folder; print the verdict over them.",
)
@run_options
@click.option(
    "--gradients",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Record gradient norms and cosines of the terms every N updates; 0 for never.",
)
@click.option(
    "--keep-checkpoints",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Keep the weights of the last N epochs of each stage.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of processes that train independent stages, or with --seeds whole runs, in parallel.",
)
@LOG
@click.option("--deterministic", is_flag=True, help="On CUDA, use kernels that give the same bits in each run.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing except errors.")
@click.option("--verbose", "-v", is_flag=True, help="Print also settings, and more about each epoch.")
@click.pass_context
def run(ctx: click.Context, /, **options: Any) -> int:
    """Run the recipe in FILE: train its stages, then evaluate every net.

    The parameters of its recipe() are options too: `kdkit run FILE --help` lists them. With --seeds, the folder is
    runs/<recipe>-seeds if --out is not given, the same command again skips the runs that are finished, and the exit
    code is 1 if a run failed.
    """
    from kdkit.cli.repeat import command_record
    from kdkit.engine.options import RunOptions
    from kdkit.engine.run import run as run_recipe
    from kdkit.engine.run_record import Origin
    from kdkit.engine.storage.run_folder import default_path
    from kdkit.study.parallel_stages import run_parallel_stages
    from kdkit.utils.memory import keep_freed_memory

    if options["quiet"] and options["verbose"]:
        raise click.UsageError("--quiet prints nothing, and --verbose more than usual; use one of them")
    file, out, jobs = file_of(ctx), options["out"], options["jobs"]
    arguments = recipe_options(file, options)
    several = options["seeds"] is not None
    if options["log"] and jobs > 1 and not several:
        raise KdkitError("stages in child processes are not logged; leave out --jobs, or --log")
    if not several and out is None and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        # The name of the default folder contains the time, so a restarted process would not find it again.
        raise RunFolderError("a run that torchrun may restart needs a run folder to resume from: add --out FOLDER")
    if jobs > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        raise KdkitError("torchrun divides each stage among its processes; leave out --jobs, or torchrun")
    settings = RunOptions(
        out=out or (None if options["resume"] else default_path(file.path.stem)),
        resume=options["resume"],
        force=options["force"],
        deterministic=options["deterministic"],
        seed=options["seed"],
        gradients=options["gradients"],
        keep_checkpoints=options["keep_checkpoints"],
        progress=not options["quiet"],
        verbose=options["verbose"],
        **run_fields(options),
    )
    if several:
        from kdkit.cli.seeds import run_seeds

        keep_freed_memory()
        return run_seeds(file, settings, options, recipe=arguments, args=arguments_of(ctx))
    loggers = loggers_of(options["log"])
    origin = Origin(file=file.path, options=arguments, command=command_record(file.path, arguments_of(ctx)))
    keep_freed_memory()  # process-wide, which only the owner of the process may decide: not in `kdkit.run`
    try:
        if jobs == 1:
            run_recipe(lambda: file.make(arguments), settings, callbacks=loggers, origin=origin)
        else:
            log = (lambda line: echo(line, err=True)) if settings.progress else (lambda _line: None)
            run_parallel_stages(file, origin, settings, jobs=jobs, log=log)
    except (KeyboardInterrupt, Terminated):
        if settings.out is not None and settings.out.exists():
            echo(f"\nto resume from the last checkpoint: kdkit run --resume {settings.out}", err=True)
        raise
    return 0


@cli.command(
    short_help="Repeat a run, and compare the results bit for bit.",
    context_settings={"ignore_unknown_options": True},  # they are those of `kdkit run`
)
@click.argument("folder", type=PATH)
@click.option("--out", type=PATH, help="Folder of the new run; FOLDER-rerun if not given.")
@click.option("--trust", is_flag=True, help="Execute a recipe file that has changed or is not yours.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def rerun(folder: Path, out: Path | None, trust: bool, options: tuple[str, ...]) -> int:
    """Repeat the run in FOLDER as it was started, and compare the results bit for bit.

    OPTIONS of `kdkit run`, such as --device, replace those that it was started with. The exit code is 1 if results
    differ.
    """
    from kdkit.cli.repeat import COMMAND, recorded_arguments
    from kdkit.engine.storage.comparison import differences, different_conditions

    if (folder / COMMAND).is_file():
        raise RunFolderError(f"{folder} holds several runs; rerun one of them, such as {folder}/seed=0")
    out = folder.with_name(f"{folder.name}-rerun") if out is None else out
    run.main(
        [*recorded_arguments(folder, trust=trust), *options, "--out", str(out)], "kdkit run", standalone_mode=False
    )
    changes = differences(folder, out)
    if not changes:
        echo(f"{out} has the results of {folder} to the bit")
        return 0
    echo(f"{out} and {folder} differ:\n  " + "\n  ".join(changes))
    conditions = different_conditions(folder, out)
    if conditions:
        echo("the runs also differ in these conditions:\n  " + "\n  ".join(conditions))
    return 1


@cli.command(cls=RecipeCommand, short_help="Show the plan of a recipe, and every problem.")
@click.argument("file", type=click.Path())
@click.option("--device", default="cpu", show_default=True, help="Device of the forward pass.")
@PRECISION
@SEED
@TEACHER_CACHE
@click.option("--svg", type=PATH, metavar="FILE", help="Also draw the plan, into this file.")
@click.option("--pairs", is_flag=True, help="Also advise which layers of students and teachers to pair.")
@click.pass_context
def check(ctx: click.Context, /, **options: Any) -> None:
    """Check the recipe in FILE and print its plan, without training.

    Every net runs on a few samples. The plan shows which net learns from which teacher, every tap with its shape,
    parameters, projectors, multiply-adds, the time of an epoch, which teacher outputs are cached, and all problems at
    once; on CUDA also the memory that a step takes. With --pairs, layers are compared on 128 samples.
    """
    from kdkit.cli.pairs_table import show_pairs
    from kdkit.cli.plan import show_plan
    from kdkit.cli.plan_svg import draw_plan
    from kdkit.engine.check.check import check as check_recipe
    from kdkit.engine.check.pairs import pair_advice
    from kdkit.engine.options import RunOptions
    from kdkit.engine.storage.run_folder import default_path
    from kdkit.utils.console import Status, make_console
    from kdkit.utils.files import write
    from kdkit.utils.randomness import seed_everything

    file = file_of(ctx)
    settings = RunOptions(
        out=default_path(file.path.stem),  # next to which the teacher cache is
        device=options["device"],
        precision=options["precision"],
        seed=options["seed"],
        teacher_cache=options["teacher_cache"],
    )
    device = settings.torch_device()
    seed_everything(settings.seed)  # recipe() is called with the random numbers of a run
    with Status() as status:
        status.show("preparing the data and the networks")
        recipe = file.make(recipe_options(file, options))
        status.show("checking the recipe")
        plan = check_recipe(recipe, device, precision=settings.precision, estimate=settings)
    console = make_console()
    console.width = min(console.width, 100)
    show_plan(plan, console, device)
    if options["svg"] is not None:
        write(options["svg"], draw_plan(plan, file.path.stem))
        echo(f"saved to {options['svg']}")
    plan.require()
    if options["pairs"]:
        with Status() as status:
            status.show("comparing layers")
            advice = pair_advice(recipe, device, settings.precision)
        for pairs in advice:
            show_pairs(pairs, console)
        if not advice:
            console.print("there is no student with a network as its teacher, whose layers could be paired")


@cli.command(cls=RecipeCommand, short_help="Print the metrics of trained weights.")
@click.argument("file", type=click.Path())
@click.option("--weights", type=PATH, required=True, help="File of weights, or the folder of a run.")
@click.option("--net", help="Net of the recipe to load them into; the one trained last if not given.")
@DEVICE
@PRECISION
@click.pass_context
def evaluate(ctx: click.Context, /, **options: Any) -> None:
    """Print the metrics of trained weights on the data of the recipe in FILE, without training.

    Thresholds are fitted on the validation split, and metrics are computed on the test split if there is one.
    """
    from kdkit.engine.console import results_table
    from kdkit.engine.evaluate import evaluate as evaluate_weights
    from kdkit.engine.options import RunOptions
    from kdkit.utils.console import Status, make_console
    from kdkit.utils.randomness import seed_everything

    file = file_of(ctx)
    settings = RunOptions(device=options["device"], precision=options["precision"])
    seed_everything(settings.seed)  # as for a run, in which recipe() may split the data
    with Status() as status:
        status.show("preparing the data and the networks")
        recipe = file.make(recipe_options(file, options))
        status.show("computing the metrics")
        results = evaluate_weights(recipe, options["weights"], net=options["net"], options=settings)
    split = "validation" if recipe.data.test is None else "test"
    console = make_console()
    console.print(results_table(results, f"{options['weights']} on {split}"))
    for note in sorted({result.note for result in results.values() if result.note}):
        console.print(f"note: {note}", style="yellow", markup=False, soft_wrap=True)


@cli.command("list", short_help="List the registered losses, models, data sets and more.")
@click.argument("file", required=False, type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with whole descriptions.")
def list_(file: Path | None, as_json: bool) -> None:
    """List everything that is registered, and the plugin that registered it.

    With FILE, the list includes what that recipe file registers.
    """
    from kdkit.cli.plan import registered, show_registries
    from kdkit.utils.console import make_console

    if file is not None:
        read_recipe_file(file)
    if as_json:
        echo(json.dumps(registered(installed()), indent=1))
    else:
        show_registries(installed(), make_console())


@cli.command(short_help="Examine the installation, and advise what to mend.")
@click.option("--runs", type=PATH, default="runs", show_default=True, help="Folder of runs, whose disk is measured.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(runs: Path, as_json: bool) -> int:
    """Examine the installation: versions, devices, threads, plugins, extras, folders, and what is slow or broken.

    The exit code is 1 if something is broken, and 0 otherwise, also if something is slow.
    """
    from kdkit.cli.doctor import examine, report, show

    facts, findings = examine(runs)
    if as_json:
        echo(json.dumps(report(facts, findings), indent=1))
    else:
        show(facts, findings)
    return int(any(finding.broken for finding in findings))


@cli.command(short_help="Print the metrics of each class of a run.")
@click.argument("folder", type=PATH)
@click.option("--net", help="Only this net; every evaluated net if not given.")
@click.option(
    "--resamples",
    type=click.IntRange(min=2),
    default=1000,
    show_default=True,
    help="Bootstrap resamples of each interval.",
)
def classes(folder: Path, net: str | None, resamples: int) -> None:
    """Print the metrics of each class for the run in FOLDER.

    The table has the positives in each split, the threshold with the best F1 on the validation split, and precision,
    recall, F1, AUROC and AUPRC with 95 % intervals. It includes classes without positives.
    """
    from kdkit.cli.per_class import table_of
    from kdkit.engine.storage.reports import nets_of_run, read_class_table
    from kdkit.utils.console import make_console

    console = make_console()
    for name in nets_of_run(folder) if net is None else (net,):
        reported, rows = read_class_table(folder, name, resamples=resamples)
        split = "validation" if reported.test is None else "test"
        console.print(table_of(rows, f"{name}, on {split}", console.width))
        if reported.test is None:
            # Metrics on the split that selected the thresholds are too high.
            console.print("note: there is no test split: thresholds were chosen on the same samples", style="yellow")
        missing = ", ".join(row.name for row in rows if not row.figures)
        if missing:
            console.print(f"note: no positives in {split}: {missing}", style="yellow", markup=False, soft_wrap=True)


@cli.command(short_help="Write a page about finished runs.")
@click.argument("folders", nargs=-1, required=True, type=PATH, metavar="RUN...")
@click.option("--out", type=PATH, help="File; report.html in the folder of the run, or here for several runs.")
def report(folders: tuple[Path, ...], out: Path | None) -> None:
    """Write a page about finished runs: did distillation help, by how much, at what cost?

    RUN is the folder of a run, or of several runs, such as a study. Several runs are shown side by side; those that
    differ in their seeds only are compared over the seeds. The page is one HTML file that needs no network. No code of
    a recipe is run.
    """
    from kdkit.report import write_report
    from kdkit.report.verdict import headline_of
    from kdkit.utils.console import Status

    if out is None:
        is_single = len(folders) == 1 and folders[0].is_dir()
        out = folders[0] / "report.html" if is_single else Path("report.html")
    with Status() as status:
        status.show("writing the report")
        written = write_report(folders, out)
    echo(headline_of(written.verdicts))
    for verdict in written.verdicts:
        echo(f"{f'{verdict.label}: ' if len(written.verdicts) > 1 else ''}{verdict.sentence}")
    echo(f"saved to {out}")


@cli.command(
    short_help="List the benchmarks of a checkout, or run one.",
    context_settings={"ignore_unknown_options": True},  # they are the benchmark's
)
@click.argument("name", required=False)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def bench(name: str | None, args: tuple[str, ...]) -> int:
    """List the benchmarks of this checkout, or run one: `kdkit bench NAME -- ARGS`.

    Each benchmark compares two or more programs side by side and prints ratios and the load of the machine.
    """
    if name is not None:
        return benchmark_scripts.bench(name, args)
    descriptions = benchmark_scripts.benchmarks()
    width = max(map(len, descriptions))
    for benchmark, description in descriptions.items():
        echo(f"{benchmark:{width}}  {description}")
    return 0


@cli.command(short_help="List or delete cached teacher outputs.")
@click.argument("folder", required=False, default="runs/teacher_cache", type=PATH)
@click.option("--delete", metavar="NAME|all", help="Delete entries by net, by the start of their name, or all.")
@click.option(
    "--keep", type=click.FloatRange(min=0), metavar="GB", help="Delete the least recently used above this size."
)
def cache(folder: Path, delete: str | None, keep: float | None) -> None:
    """List the cached teacher outputs in FOLDER, or delete some of them.

    FOLDER is runs/teacher_cache if it is not given.
    """
    from kdkit.cli.teacher_cache import show_cache
    from kdkit.teachers.cache import CacheFolder
    from kdkit.utils.console import make_console

    cache_folder = CacheFolder(folder)
    deleted = cache_folder.delete(delete) if delete is not None else []
    if keep is not None:
        if not math.isfinite(keep):
            raise KdkitError(f"--keep must be a number of gigabytes; got {keep}")
        deleted += cache_folder.shrink(int(keep * 10**9))
    show_cache(make_console(), folder, cache_folder.kept(), deleted)
