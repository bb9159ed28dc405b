"""The commands `kdkit run` and `kdkit rerun`."""

import os
import shlex
from pathlib import Path
from typing import Any

import click

from kdkit.cli.options import BASELINE, JOBS, LOG, PATH, SEED, TRUST, loggers_of, run_fields, run_options, seeds_option
from kdkit.cli.recipe_command import RunCommand, arguments_of, file_of, recipe_options
from kdkit.errors import KdkitError, RunFolderError, Terminated
from kdkit.utils.printable import echo, is_first_process


@click.command(cls=RunCommand, short_help="Train the stages of a recipe, and evaluate its nets.")
@click.argument("file", type=click.Path())
@click.option("--out", type=PATH, metavar="FOLDER", show_default="runs/<recipe>-<time>", help="Folder of the run.")
@seeds_option()
@BASELINE
@SEED
@click.option(
    "--resume", is_flag=True, help="Resume the run in --out from its last checkpoint; or --resume FOLDER, without FILE."
)
@LOG
@JOBS
@click.option("--quiet", "-q", is_flag=True, help="Print only errors and warnings.")
@click.option("--verbose", "-v", is_flag=True, help="Also print versions and settings, and more about each epoch.")
@run_options
@click.option(
    "--keep-checkpoints",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Also keep the weights of the last N epochs of each stage, besides the best.",
)
@click.option(
    "--gradients",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Record gradient norms and cosines of the terms every N updates; 0: never.",
)
@click.option("--deterministic", is_flag=True, help="On CUDA, use slower kernels that give the same bits in each run.")
@click.option("--force", is_flag=True, help="With --resume: resume even if the recipe, data or versions have changed.")
@TRUST
@click.pass_context
def run(ctx: click.Context, /, **options: Any) -> int:
    """Train the stages of the recipe in FILE, and evaluate its nets.

        kdkit run recipe.py
        kdkit run recipe.py --seeds 5 --baseline

    `kdkit run FILE --help` also lists the options of the recipe.

    With --seeds, N seeds are counted from --seed, and the folder is runs/<recipe>-seeds by default. Running
    the same command again skips finished runs. The exit code is 1 if a run failed.
    """
    from kdkit.cli.repeat import command_record
    from kdkit.engine.distributed import process_group
    from kdkit.engine.options import RunOptions
    from kdkit.engine.run import run as run_recipe
    from kdkit.engine.run_record import Origin
    from kdkit.engine.storage.run_folder import default_path
    from kdkit.study.parallel_stages import run_parallel_stages
    from kdkit.utils.memory import keep_freed_memory

    if options["quiet"] and options["verbose"]:
        raise click.UsageError("--quiet and --verbose contradict each other; use one of them")
    file, out, jobs = file_of(ctx), options["out"], options["jobs"]
    arguments = recipe_options(file, options)
    several = options["seeds"] is not None
    if options["log"] and jobs > 1 and not several:
        raise KdkitError("stages in child processes are not logged; leave out --jobs, or --log")
    if not several and out is None and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        # The name of the default folder contains the time, so a restarted process would not find it again.
        raise RunFolderError("a run that torchrun may restart needs a run folder to resume from: add --out FOLDER")
    if jobs > 1 and process_group.launched():
        raise KdkitError("torchrun divides each stage among its processes; leave out --jobs, or torchrun")
    settings = RunOptions(
        out=out or (None if options["resume"] else default_path(file.path.stem)),
        progress=not options["quiet"],
        **run_fields(options, "resume", "force", "deterministic", "seed", "gradients", "keep_checkpoints", "verbose"),
    )
    if several:
        from kdkit.cli.seeds import run_seeds

        keep_freed_memory()
        return run_seeds(file, settings, options, recipe=arguments, args=arguments_of(ctx))
    loggers = loggers_of(options["log"])
    origin = Origin(file=file.path, options=arguments, command=command_record(file.path, arguments_of(ctx)))
    keep_freed_memory()  # process-wide, so the command line decides it, not `kdkit.run`
    try:
        if jobs == 1:
            run_recipe(lambda: file.make(arguments), settings, callbacks=loggers, origin=origin)
        else:
            log = (lambda line: echo(line, err=True)) if settings.progress else (lambda _line: None)
            run_parallel_stages(file, origin, settings, jobs=jobs, log=log)
    except (KeyboardInterrupt, Terminated):
        if settings.out is not None and settings.out.exists() and is_first_process():
            ranks = os.environ.get("LOCAL_WORLD_SIZE")  # of torchrun
            kdkit = "kdkit" if ranks is None else f"torchrun --nproc-per-node={ranks} -m kdkit"
            folder = shlex.quote(str(settings.out))
            echo(f"\nto resume from the last checkpoint: {kdkit} run --resume {folder}", err=True)
        raise
    return 0


@click.command(
    short_help="Repeat a run, and compare the results bit for bit.",
    context_settings={"ignore_unknown_options": True},  # they are options of `kdkit run`
)
@click.argument("folder", type=PATH)
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[RUN OPTIONS]...")
@click.option(
    "--out",
    type=PATH,
    metavar="FOLDER",
    show_default="FOLDER-rerun, or STUDY-rerun/RUN for STUDY/RUN",
    help="Folder of the new run.",
)
@TRUST
def rerun(folder: Path, out: Path | None, trust: bool, options: tuple[str, ...]) -> int:
    """Repeat the run in FOLDER as it was started, and compare the results bit for bit.

        kdkit rerun runs/first
        kdkit rerun runs/first --device cpu

    RUN OPTIONS are options of `kdkit run`, and override the recorded ones. The exit code is 1 if
    results differ.
    """
    from kdkit.cli.repeat import COMMAND, recorded_arguments, without_options
    from kdkit.engine.storage.comparison import differences, different_conditions
    from kdkit.engine.storage.run_folder import read_record
    from kdkit.study.workers.job import TRIAL_FILE

    if (folder / COMMAND).is_file():
        raise RunFolderError(f"{folder} holds several runs; rerun one of them, such as {folder}/seed=0")
    if out is None:
        named = folder.resolve() if folder.name in ("", "..") else folder  # for `kdkit rerun .`
        # Outside of the study, whose report and comparisons would count the run twice.
        original = named.parent if (named / TRIAL_FILE).is_file() else named
        out = original.with_name(f"{original.name}-rerun") / named.relative_to(original)
    arguments = recorded_arguments(folder, trust=trust)
    # A run of a sweep may have no student, for which a single run fails.
    if "--baseline" in arguments and not read_record(folder).get("baselines"):
        arguments = without_options(arguments, {"--baseline": 0})
    run.main([*arguments, *options, "--out", str(out)], "kdkit run", standalone_mode=False)
    if not is_first_process():  # the first process may still be writing the folder
        return 0
    changes = differences(folder, out)
    if not changes:
        echo(f"the results in {out} and {folder} are equal, bit for bit")
        return 0
    echo(f"{out} and {folder} differ:\n  " + "\n  ".join(changes))
    conditions = different_conditions(folder, out)
    if conditions:
        echo("the runs also differ in these conditions:\n  " + "\n  ".join(conditions))
    return 1
