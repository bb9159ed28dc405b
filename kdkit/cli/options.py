"""Options that several commands share, and the fields of RunOptions that they set."""

from collections.abc import Callable, Sequence
from typing import Any

import click

from kdkit.utils.paths import UserPath

PATH = UserPath()
LOGGERS = ("csv", "jsonl", "tensorboard", "trackio", "mlflow", "wandb")
LAST_NET = "the net trained last"  # the default of NET in most commands


def device_option(default: str) -> Callable[..., Any]:
    """Return the option `--device`."""
    return click.option(
        "--device",
        default=default,
        show_default=True,
        metavar="NAME",
        help="Device to compute on: cpu, cuda, cuda:1, mps, or auto for a GPU if there is one.",
    )


def net_option(default: str = LAST_NET) -> Callable[..., Any]:
    """Return the option `--net`. default: a description of the net that the command uses without it."""
    return click.option("--net", metavar="NAME", show_default=default, help="Name of the net in the recipe.")


def _read_seeds(_ctx: click.Context, option: click.Parameter, text: str | None) -> int | list[int] | None:
    """Return the number of seeds, or the seeds themselves if there are commas; None if the option is missing."""
    if text is None:
        return None
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(
            f"expected a number of seeds, or seeds such as 0,1,2; got {text!r}", param=option
        ) from error
    return numbers[0] if len(numbers) == 1 else numbers


def seeds_option(default: str | None = None) -> Callable[..., Any]:
    """Return the option `--seeds`."""
    return click.option(
        "--seeds",
        default=default,
        show_default=default is not None,
        callback=_read_seeds,
        metavar="N|SEED,...",
        help="Repeat with N seeds, or with a list of seeds such as 3,5,8, and compare over them.",
    )


SEED = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Seed of all random numbers."
)
BASELINE = click.option(
    "--baseline", is_flag=True, help="Also train each distilled student on labels alone, and compare the two."
)
JOBS = click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Number of processes for several runs, or for independent stages of one. They share the cores.",
)
LOG = click.option(
    "--log",
    multiple=True,
    metavar="NAME",
    help=f"Log to {', '.join(LOGGERS)}, or a logger of a plugin; may be repeated.",
    # Without loggers of plugins, because loading plugins imports torch.
    shell_complete=lambda _ctx, _param, incomplete: [name for name in LOGGERS if name.startswith(incomplete)],
)
AVERAGE_OVER = click.option(
    "--average-over",
    multiple=True,
    metavar="OPTION",
    # Accept a flag or the name of a parameter.
    callback=lambda _ctx, _param, names: tuple(name.removeprefix("--").replace("-", "_") for name in names),
    help="Option of the recipe whose values are repetitions, like seeds, such as the folds of a cross-validation; "
    "may be repeated.",
)
PRECISION = click.option(
    "--precision",
    default="fp32",
    show_default=True,
    metavar="fp32|bf16|fp16",
    help="Precision of forward passes; bf16 and fp16 use autocast, which is faster on GPUs.",
)
TEACHER_CACHE = click.option(
    "--teacher-cache",
    default="auto",
    show_default=True,
    metavar="auto|off|DIR",
    help="Folder for cached outputs of frozen teachers; auto is teacher_cache next to the run folder.",
)
TRUST = click.option(
    "--trust",
    is_flag=True,
    help="Execute the recipe file of a run folder even if it has changed or was not recorded by you.",
)
# Options of the commands that train, from common to rare, by the field of RunOptions that each sets.
_RUN_OPTIONS = {
    "device": device_option("auto"),
    "precision": PRECISION,
    "checkpoint_every": click.option(
        "--checkpoint-every",
        default="10min",
        show_default=True,
        metavar="N|TIME",
        help="Write a checkpoint after each epoch, and after N updates or a time (30s, 10min, 2h); 0: epochs only.",
    ),
    "teacher_cache": TEACHER_CACHE,
    "teacher_cache_size": click.option(
        "--teacher-cache-size",
        type=click.FloatRange(min=0, min_open=True),
        default=20.0,
        show_default=True,
        metavar="GB",
        help="Maximum size of the teacher cache in GB; the least recently used outputs are deleted.",
    ),
    "measure": click.option(
        "--measure/--no-measure",
        default=True,
        show_default=True,
        help="Measure latency, multiply-adds and similar layers for the report; this takes about a second per net.",
    ),
    "compile": click.option(
        "--compile",
        is_flag=True,
        help="Compile each stage with torch.compile, which takes about half a minute and pays off in long stages.",
    ),
    "capture": click.option(
        "--capture",
        default="auto",
        show_default=True,
        metavar="auto|off|require",
        help="On CUDA, replay training steps as a CUDA graph, if possible; require: fail if not.",
    ),
    "device_data": click.option(
        "--device-data",
        type=click.FloatRange(min=0, max=1),
        default=0.25,
        show_default=True,
        metavar="SHARE",
        help="On CUDA, share of the free memory used to keep samples on the device; 0 copies each batch.",
    ),
}


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that all commands that train share to a command."""
    for option in reversed(_RUN_OPTIONS.values()):  # the last decorator is applied first
        command = option(command)
    return command


def run_fields(options: dict[str, Any], *others: str) -> dict[str, Any]:
    """Return the values of these options, of `--baseline`, and of others, as fields of RunOptions."""
    return {name: options[name] for name in (*_RUN_OPTIONS, "baseline", *others)}


def loggers_of(names: Sequence[str]) -> list[object]:
    """Return the loggers of these names, after importing what they need."""
    if not names:
        return []
    from kdkit.loggers.base import make_loggers

    return make_loggers(names)
