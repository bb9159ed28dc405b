"""Options of several commands, and the fields of RunOptions that they set."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)
LOGGERS = ("csv", "jsonl", "tensorboard", "trackio", "mlflow", "wandb")

DEVICE = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps, or auto.")
PRECISION = click.option("--precision", default="fp32", show_default=True, help="fp32, bf16 or fp16 (autocast).")
SEED = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all random numbers."
)
TEACHER_CACHE = click.option(
    "--teacher-cache",
    default="auto",
    show_default=True,
    metavar="auto|off|DIR",
    help="Folder of cached teacher outputs; auto: teacher_cache next to the run folder.",
)
LOG = click.option(
    "--log",
    multiple=True,
    metavar="NAME",
    help=f"Log to {', '.join(LOGGERS)}, or a logger of a plugin; may be repeated.",
    # Only these, since plugins would have to be loaded for others, which imports torch.
    shell_complete=lambda _ctx, _param, incomplete: [name for name in LOGGERS if name.startswith(incomplete)],
)
AVERAGE_OVER = click.option(
    "--average-over",
    multiple=True,
    metavar="OPTION",
    # As a flag or as the name of a parameter.
    callback=lambda _ctx, _param, names: tuple(name.removeprefix("--").replace("-", "_") for name in names),
    help="Option of the recipe whose values are repetitions, as seeds are, such as the folds of a cross-validation; "
    "may be repeated.",
)
# For the commands that train; each has the name of a field of RunOptions.
_RUN_OPTIONS = (
    DEVICE,
    PRECISION,
    click.option("--compile", is_flag=True, help="Compile the forward pass of each stage with torch.compile."),
    click.option(
        "--capture",
        default="auto",
        show_default=True,
        metavar="auto|off|require",
        help="On CUDA, capture the training step of each stage as a CUDA graph.",
    ),
    click.option(
        "--device-data",
        type=click.FloatRange(min=0, max=1),
        default=0.25,
        show_default=True,
        metavar="SHARE",
        help="On CUDA, the share of free memory in which samples are kept on the device.",
    ),
    TEACHER_CACHE,
    click.option(
        "--teacher-cache-size",
        type=click.FloatRange(min=0, min_open=True),
        default=20.0,
        show_default=True,
        metavar="GB",
        help="Maximum size of the teacher cache.",
    ),
    click.option(
        "--checkpoint-every",
        default="10min",
        show_default=True,
        metavar="N|TIME",
        help="Write a checkpoint after N updates or a time (30s, 10min, 2h), and after each epoch; 0 for epochs only.",
    ),
    click.option("--baseline", is_flag=True, help="Also train each distilled student on labels alone, and compare."),
    click.option(
        "--measure/--no-measure",
        default=True,
        show_default=True,
        help="At the end, measure latency, multiply-adds and the similarity of layers, for the report.",
    ),
)
_RUN_FIELDS = (
    "device",
    "precision",
    "compile",
    "capture",
    "device_data",
    "teacher_cache",
    "teacher_cache_size",
    "checkpoint_every",
    "baseline",
    "measure",
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of RunOptions that all commands that train have to a command."""
    for option in reversed(_RUN_OPTIONS):  # the last decorator is applied first
        command = option(command)
    return command


def run_fields(options: dict[str, Any]) -> dict[str, Any]:
    """Return the values of these options as fields of RunOptions."""
    return {name: options[name] for name in _RUN_FIELDS}


def read_seeds(_ctx: click.Context, option: click.Parameter, text: str | None) -> int | list[int] | None:
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


def loggers_of(names: Sequence[str]) -> list[object]:
    """Return the loggers of these names, which import what they need."""
    if not names:
        return []
    from kdkit.loggers.base import make_loggers

    return make_loggers(names)
