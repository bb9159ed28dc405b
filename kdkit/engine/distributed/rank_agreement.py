"""Refuse a run whose ranks have different recipes, options or data, because it would be wrong or hang."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from kdkit.data.order import describe_sampler
from kdkit.engine.options import RunOptions
from kdkit.engine.run_record import Origin
from kdkit.engine.storage.run_folder import resumable_files
from kdkit.errors import DataError, RecipeError, RunFolderError
from kdkit.recipe.recipe import Recipe, nets_of
from kdkit.utils import collectives
from kdkit.utils.reprs import without_addresses

# Options that may differ: only the first rank uses them, or ranks agree on them elsewhere, or machines differ.
_OF_ONE_RANK = frozenset({"out", "resume", "force", "device", "device_data", "measure", "progress", "verbose"})
_SHOWN, _LONGEST = 3, 200  # differences in a message, and characters of a value


def require_agreement(recipe: Recipe, options: RunOptions, device: torch.device, origin: Origin) -> None:
    """Raise KdkitError on all ranks if they have different data, recipes or options, or resume from different files.

    All ranks must call this.
    """
    if not collectives.is_distributed():
        return
    if len(set(collectives.all_gather_objects([(recipe.data.fingerprint, recipe.data.train_digest)]))) > 1:
        raise DataError(
            "the processes of this run have different data, so the training data of one may be the test data of "
            "another; create the data inside recipe(), which runs with seeded random numbers, or split it with a "
            "seeded generator"
        )
    if options.resume and options.out is not None:
        first, *others = collectives.all_gather_objects([resumable_files(options.out)])
        if any(other != first for other in others):
            raise RunFolderError(
                f"the processes of this run find different files in {options.out}, the folder to resume; processes on "
                "several machines need a shared run folder"
            )
    facts = {name: _text(value) for name, value in _facts(recipe, options, device, origin)}
    digest = hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()
    if len(set(collectives.all_gather_objects([digest]))) == 1:  # a digest, because networks have many facts
        return
    raise RecipeError(
        f"the processes of this run have different recipes or options: {_differences(facts)}; start all processes with "
        "the same options, and let recipe() return the same in each of them (initial weights may differ)"
    )


def _facts(recipe: Recipe, options: RunOptions, device: torch.device, origin: Origin) -> Iterator[tuple[str, Any]]:
    """Yield what must be the same on all ranks, with a name for messages; causes come before their consequences."""
    for option in fields(options):
        if option.name not in _OF_ONE_RANK:
            value = getattr(options, option.name)
            # Each machine may have its own folder for the teacher cache.
            yield f"option {option.name}", "a folder" if isinstance(value, Path) else value
    yield "the device", device.type
    yield "the recipe file", origin.sha256
    for name, value in (origin.options or {}).items():
        yield f"option {name} of the recipe", value
    yield "the draws of the data", recipe.data.draws
    yield "the sampler of the data", describe_sampler(recipe.data.train)
    yield "the metrics", recipe.metrics
    yield "the settings of the teacher cache", recipe.teacher_cache
    yield "the names of the stages", [stage.name for stage in recipe.stages]
    for net in nets_of(recipe.stages):
        yield f"the view, version and classes of net {net.name!r}", (net.view.key, net.version, net.classes)
        yield from _facts_of_tensors(net.module, f"net {net.name!r}")
    for stage in recipe.stages:
        for option in fields(stage.training):
            if option.name != "workers":  # does not change results, and a recipe may derive it from the cores
                yield f"{option.name} of stage {stage.name!r}", getattr(stage.training, option.name)
        for net, objective in stage.objectives.items():
            terms = list(objective)
            yield f"the number of terms of net {net.name!r} in stage {stage.name!r}", len(terms)
            for weighted in terms:
                name = f"term {weighted.term.label!r} of net {net.name!r} in stage {stage.name!r}"
                yield name, weighted
                yield from _facts_of_tensors(weighted.term.loss, name)


def _facts_of_tensors(module: object, owner: str) -> Iterator[tuple[str, Any]]:
    """Yield the shape, dtype and role of every parameter and buffer of a module; nothing for other objects."""
    if not isinstance(module, nn.Module):
        return
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        shape = "no" if is_lazy(tensor) else tuple(tensor.shape)
        role = "trained" if tensor.requires_grad else "not trained"
        yield f"tensor {name} of {owner}", f"{shape} {str(tensor.dtype).removeprefix('torch.')}, {role}"


def _text(value: Any) -> str:
    """Return the repr of a value without the parts that differ between processes: addresses, GPUs, and set order."""
    text = without_addresses(value if isinstance(value, str) else repr(value))
    text = re.sub(r"cuda:\d+", "cuda", text)
    return re.sub(r"\{([^{}]*)\}", lambda group: f"{{{', '.join(sorted(group[1].split(', ')))}}}", text)


def _differences(facts: Mapping[str, str]) -> str:
    """Return the first facts in which another rank differs from rank 0, with both values."""
    first, *others = collectives.all_gather_objects([facts])
    described: dict[str, str] = {}
    for rank, facts_of_rank in enumerate(others, start=1):
        for name in dict.fromkeys((*first, *facts_of_rank)):
            if first.get(name) != facts_of_rank.get(name):
                values = [of_rank.get(name, "missing") for of_rank in (first, facts_of_rank)]
                values = [value if len(value) <= _LONGEST else f"{value[:_LONGEST]}..." for value in values]
                described.setdefault(name, f"{name} ({values[0]} in process 0, {values[1]} in process {rank})")
    more = f"; and {len(described) - _SHOWN} more" if len(described) > _SHOWN else ""
    return "; ".join([*described.values()][:_SHOWN]) + more
