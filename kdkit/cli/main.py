"""The command line: run, check, list and bench, and what plugins add."""

import os
import sys
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import click

from kdkit import __version__
from kdkit.cli.recipe_command import RecipeCommand, chosen, file_of
from kdkit.errors import KdkitError, RemoteRankError, RunFolderError
from kdkit.plugins.manager import Plugins, installed
from kdkit.plugins.recipe_file import RecipeFile, read_recipe_file


def main() -> None:
    """Run the command line. A KdkitError is printed without a traceback, and the exit code is 2."""
    sys.exit(call(sys.argv[1:]))


def call(args: list[str]) -> int:
    """Run the command line with these arguments and return its exit code."""
    try:
        with _together():
            _add_commands(_plugins())
            code = cli.main(args, prog_name="kdkit", standalone_mode=False)
            return code if isinstance(code, int) else 0
    except RemoteRankError:
        return 2
    except KdkitError as error:
        click.echo(f"error: {error}", err=True)
        return 2
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("stopped", err=True)
        return 130


def _together() -> AbstractContextManager[None]:
    """Return the context of one of several processes that torchrun started, so that an error is said once."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return nullcontext()
    from kdkit.engine.distributed import joined  # imports torch, which --help does without

    return joined()


def _plugins() -> Plugins:
    """Return the plugins, having said in a line each which of them are left out."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plugins = installed()
    for each in caught:
        click.echo(f"warning: {each.message}", err=True)
    return plugins


def _add_commands(plugins: Plugins) -> None:
    """Let every plugin add its commands; one that fails is a line of warning, and its commands are missing."""
    for each in plugins.hook.register_commands.get_hookimpls():
        try:
            each.function(*([cli] if each.argnames else []))
        except Exception as error:  # whatever a stranger's plugin raises must not cost everybody's commands
            click.echo(
                f"warning: plugin {each.plugin_name!r} could not add its commands: {type(error).__name__}: {error}",
                err=True,
            )


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="kdkit")
def cli() -> None:
    """Knowledge distillation: who learns what from whom, in one readable loop."""


@cli.command(cls=RecipeCommand)
@click.argument("file")
@click.option("--out", type=click.Path(path_type=Path), help="The run folder; runs/<recipe>-<time> if not given.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, from its last epoch.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps, or auto.")
@click.option("--precision", default="fp32", show_default=True, help="fp32, bf16 or fp16 (autocast).")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Where all randomness starts.")
@click.option("--compile", "compile_", is_flag=True, help="Compile each lesson with torch.compile.")
@click.option(
    "--gradients",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Record norms and cosines of the terms' gradients at every N-th update; 0 for never.",
)
@click.option(
    "--teacher-cache",
    default="auto",
    show_default=True,
    metavar="auto|off|DIR",
    help="Where it is recorded what frozen teachers say; auto: `answers` beside the run folder.",
)
@click.option(
    "--teacher-cache-size",
    type=click.FloatRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    metavar="GB",
    help="How large that folder may get.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Stages trained at once, where they need not wait for each other, each in a process.",
)
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@click.pass_context
def run(ctx: click.Context, /, **options: Any) -> None:
    """Run the recipe in FILE: train its stages, then score every net.

    The parameters of its recipe() are options too: `kdkit run FILE --help` lists them.
    """
    from kdkit.cli.console import ConsoleCallback, console_for_people  # these import torch, which --help does without
    from kdkit.engine.options import RunOptions
    from kdkit.engine.run import run as run_recipe
    from kdkit.engine.run_record import Origin
    from kdkit.engine.storage.run_folder import default_path
    from kdkit.utils.memory import keep_freed_memory

    file = file_of(ctx)
    own = chosen(file, options)
    _require_lasting(options["out"])
    settings = RunOptions(
        out=options["out"] or (None if options["resume"] else default_path(file.path.stem)),
        resume=options["resume"],
        device=options["device"],
        precision=options["precision"],
        seed=options["seed"],
        compile=options["compile_"],
        gradients=options["gradients"],
        teacher_cache=options["teacher_cache"],
        teacher_cache_size=options["teacher_cache_size"],
    )
    callbacks = [] if options["quiet"] else [ConsoleCallback(console_for_people())]
    origin = Origin(file=file.path, options=own)
    keep_freed_memory()
    try:
        if options["jobs"] > 1:
            _run_at_once(file, own, settings, options, callbacks)
        else:
            run_recipe(lambda: file.make(own), settings, callbacks=callbacks, origin=origin)
    except KeyboardInterrupt:
        if settings.out is not None and settings.out.exists():
            click.echo(f"\nto go on from the last epoch, add: --out {settings.out} --resume", err=True)
        raise


@cli.command(cls=RecipeCommand)
@click.argument("file")
@click.option("--device", default="cpu", show_default=True, help="Where the tiny forward pass runs.")
@click.option("--precision", default="fp32", show_default=True, help="fp32, bf16 or fp16 (autocast).")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Where all randomness starts.")
@click.pass_context
def check(ctx: click.Context, /, **options: Any) -> None:
    """Check the recipe in FILE and show its plan: nothing is trained.

    Every net sees two samples once. Shown are who learns what from whom, every tap with its shape, the parameters of
    nets and projectors, and every problem at once.
    """
    from kdkit.cli.console import console_for_people
    from kdkit.cli.plan import show_plan
    from kdkit.engine.check.check import check as check_recipe  # these import torch, which --help does without
    from kdkit.engine.options import RunOptions
    from kdkit.utils.randomness import seed_everything

    file = file_of(ctx)
    settings = RunOptions(device=options["device"], precision=options["precision"], seed=options["seed"])
    device = settings.torch_device()
    seed_everything(settings.seed)
    plan = check_recipe(file.make(chosen(file, options)), device, precision=settings.precision)
    show_plan(plan, console_for_people())
    plan.require()


@cli.command("list")
@click.argument("file", required=False, type=click.Path(path_type=Path))
def list_(file: Path | None) -> None:
    """List every shelf, and the plugin that each thing came from; with FILE, also what that recipe file adds."""
    from kdkit.cli.console import console_for_people  # these import torch, which --help does without
    from kdkit.cli.plan import show_shelves

    if file is not None:
        read_recipe_file(file)
    show_shelves(installed(), console_for_people())


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--net", help="Only this net; every net that was scored if not given.")
@click.option("--resamples", type=click.IntRange(min=2), default=1000, show_default=True, help="Of each interval.")
def classes(folder: Path, net: str | None, resamples: int) -> None:
    """Show how the nets of the run in FOLDER do, class by class.

    Shown are the positives in each split, the threshold with the best F1 on the selection split, and precision, recall,
    F1, AUROC and AUPRC with intervals of 95 %. Classes without positives stand there too.
    """
    from kdkit.cli.console import console_for_people  # these import torch, which --help does without
    from kdkit.cli.per_class import table_of
    from kdkit.engine.storage.run_folder import nets_of_run, read_reported
    from kdkit.metrics.per_class import class_table

    console = console_for_people()
    for each in nets_of_run(folder) if net is None else (net,):
        reported = read_reported(folder, each)
        rows = class_table(reported, resamples=resamples)
        split = "validation" if reported.test is None else "test"
        console.print(table_of(rows, f"{each}, on {split}"))
        if reported.test is None:
            console.print("note: there is no test split: thresholds were chosen on these very samples", style="yellow")
        lacking = ", ".join(row.name for row in rows if not row.figures)
        if lacking:
            console.print(f"note: no positives in {split}: {lacking}", style="yellow", markup=False, soft_wrap=True)


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("name", required=False)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def bench(name: str | None, args: tuple[str, ...]) -> int:
    """List the benchmarks of this checkout, or run the one called NAME: `kdkit bench NAME -- ARGS`.

    Each compares two or more things side by side and prints ratios and the machine's load.
    """
    from kdkit.cli.bench import bench as run_benchmark  # not loaded with every command
    from kdkit.cli.bench import benchmarks

    if name is not None:
        return run_benchmark(name, args)
    known = benchmarks()
    width = max(map(len, known))
    for each, measured in known.items():
        click.echo(f"{each:{width}}  {measured}")
    return 0


@cli.command()
@click.argument("folder", required=False, default="runs/teacher_cache", type=click.Path(path_type=Path))
@click.option("--delete", metavar="NAME|all", help="Delete those of a net, or that begin so in the list, or all.")
@click.option("--keep", type=click.FloatRange(min=0), metavar="GB", help="Delete the longest unused down to this size.")
def cache(folder: Path, delete: str | None, keep: float | None) -> None:
    """List what teachers said in earlier runs, recorded in FOLDER, or delete some of it.

    FOLDER is runs/teacher_cache where it is not given.
    """
    from kdkit.cli.console import console_for_people
    from kdkit.cli.teacher_cache import show_cache
    from kdkit.teachers.cache import CacheFolder  # these import torch, which --help does without

    console, place = console_for_people(), CacheFolder(folder)
    gone = place.delete(delete) if delete is not None else []
    gone += place.shrink(int(keep * 10**9)) if keep is not None else []
    show_cache(console, folder, place.kept(), gone)


def _run_at_once(
    file: RecipeFile, own: Mapping[str, Any], settings: Any, options: Mapping[str, Any], callbacks: list[Any]
) -> None:
    """Run a recipe file in several processes of which each trains a stage."""
    from kdkit.study.parallel_stages import run_at_once

    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise KdkitError("torchrun shares out each stage among its processes; leave out --jobs, or torchrun")
    say = (lambda _line: None) if options["quiet"] else (lambda line: click.echo(line, err=True))
    run_at_once(file, own, settings, jobs=options["jobs"], callbacks=callbacks, say=say)


def _require_lasting(out: Path | None) -> None:
    """Raise RunFolderError where a run that torchrun may start anew would not know its own folder again."""
    if out is None and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise RunFolderError("a run that torchrun may start anew says where it is kept, to go on there: --out FOLDER")
