"""Explain out-of-memory errors: how much memory the device has, and which settings need less."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kdkit.data.dataset import LoaderSplit, Split
from kdkit.engine.options import RunOptions
from kdkit.errors import KdkitError, RecipeError, describe_error, first_line
from kdkit.recipe.recipe import Stage
from kdkit.utils import collectives, memory
from kdkit.utils.memory import is_out_of_memory


@contextmanager
def explain_out_of_memory(
    stage: Stage, split: Split | LoaderSplit, options: RunOptions, device: torch.device, *, trains: bool
) -> Iterator[None]:
    """Raise KdkitError if memory runs out while the networks of a stage train on a split, or predict it."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        size: int | None = stage.training.batch_size
        if isinstance(split, LoaderSplit):
            split = split.batched(stage.training.batch_size)
            size = split.loader.batch_size
        batches = "" if size is None else f" in batches of {size}"  # None for a DataLoader with a batch_sampler
        source = " of torch" if isinstance(error, RuntimeError) else ""
        remedies = [*_remedies(stage, split, size, options, trains=trains)]
        if options.out is not None:
            remedies.append(
                f"a device with more memory, to resume the run in {options.out} unchanged; with other settings it is "
                "another run, which needs its own folder"
            )
        lines = [
            f"stage {stage.name!r}: out of memory while {'training' if trains else 'predicting'}{batches}; "
            f"{memory.describe_use(device)}. What helps:",
            *(f"  - {remedy}" for remedy in remedies),
            f"The error{source}: {first_line(error)}",
        ]
        # The frames hold the tensors of the failed step, and a caller such as a study keeps the error.
        traceback.clear_frames(error.__traceback__)
        raise KdkitError("\n".join(lines)) from error


@contextmanager
def explain_memory_of_run(device: torch.device) -> Iterator[None]:
    """Raise KdkitError if memory runs out in a run outside of a stage, for example while data is prepared."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError, RecipeError) as error:
        # A RecipeError names the line of the recipe file, and has the allocator's error as its cause.
        is_located = isinstance(error, RecipeError)
        cause = error.__cause__ if is_located else error
        if cause is None or not is_out_of_memory(cause):
            raise
        reason = error if is_located else describe_error(error)
        lines = [
            f"out of memory ({reason}); {memory.describe_use(device)}. What helps:",
            "  - a Dataset that reads each sample when it is needed, instead of data that is entirely in memory",
            "  - smaller networks, fewer workers, and fewer other programs",
        ]
        traceback.clear_frames(error.__traceback__)
        raise KdkitError("\n".join(lines)) from error


def _remedies(
    stage: Stage, split: Split | LoaderSplit, size: int | None, options: RunOptions, *, trains: bool
) -> Iterator[str]:
    """Yield the settings that need less memory."""
    if size is not None and size // 2 >= 2 * collectives.world_size():  # batch norm needs two samples on each rank
        steps = 2 * stage.training.accumulate_steps
        settings = f"Training(batch_size={size // 2}, accumulate_steps={steps})"
        if isinstance(split, LoaderSplit):
            settings = f"a DataLoader with batch_size={size // 2}, and Training(accumulate_steps={steps})"
        yield f"{settings}: half a batch at a time, and {'' if size % 2 == 0 else 'about '}as many samples per update"
    if options.precision == "fp32":
        yield "precision bf16 (--precision bf16, or precision='bf16'): activations of two bytes instead of four"
    keeping = [net.name for net in stage.objectives if not net.recompute]
    if trains and keeping:
        yield (
            f"Net({keeping[0]!r}, ..., recompute=[...]) with the names of its blocks, such as 'layer1': activations "
            "are computed again in the backward pass instead of being kept"
        )
