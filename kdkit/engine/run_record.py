"""What is said of where a run's figures come from: its recipe, options, data, nets and versions."""

import hashlib
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kdkit import __version__
from kdkit.data.dataset import Data, Split, optional_member
from kdkit.engine import distributed
from kdkit.engine.check.plan import Plan
from kdkit.engine.trainer import RunContext
from kdkit.metrics import Predictions, true_classes
from kdkit.recipe.recipe import Recipe
from kdkit.utils import collectives


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a recipe came from: the file that is copied into the run folder, and the options it was called with."""

    file: Path | None = None
    options: Mapping[str, Any] | None = None


def name_of(recipe: Recipe, origin: Origin) -> str:
    """Return what a run is called: the recipe's own name, or that of its file."""
    return recipe.name or ("recipe" if origin.file is None else origin.file.stem)


def record_of(place: RunContext, origin: Origin) -> dict[str, Any]:
    """Return what `run.json` holds, by which a run that goes on with a folder is known to be the same."""
    options, data = place.options, place.recipe.data
    teacher = None if origin.file is None else origin.file.read_bytes()
    return {
        "recipe": name_of(place.recipe, origin),
        "recipe_sha256": None if teacher is None else hashlib.sha256(teacher).hexdigest(),
        "options": {key: str(value) for key, value in (origin.options or {}).items()},
        "seed": options.seed,
        "device": str(place.device),
        "precision": options.precision,
        "processes": collectives.world_size(),
        "data": data.fingerprint,
        "draws": data.draws,
        "stages": [stage.name for stage in place.plan.stages],
        "positives": _positives(data),
        "nets": {
            net.name: {"parameters": net.parameters, "view": net.view.key, "version": net.version}
            for net in place.plan.nets
        },
        # Workers that are chosen are 0 here: a run may go on beside another device, and one from before they were.
        "trainings": [
            repr(replace(stage.training, workers=stage.training.workers or 0)) for stage in place.plan.stages
        ],
        "teacher_cache": place.recipe.teacher_cache.form,
        "versions": {"kdkit": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def notices(recipe: Recipe, plan: Plan) -> Iterator[str]:
    """Say what a reader of the figures must know: of the data, and of what kdkit cannot promise for it."""
    data = recipe.data
    yield from str(optional_member(data, Data, "summary")).splitlines()
    yield from optional_member(data, Data, "notices")
    if data.draws is None:
        yield "the data's randomness is its own, so runs repeat exactly only if it does"
    for name in sorted(net.name for net in plan.foreign):
        yield f"net {name!r} is not scored: its outputs are not about the data's classes"
    students = [net.network for stage in plan.stages for net in stage.objectives]
    yield from distributed.notices(students)
    if data.test is None:
        yield "there is no test split: scores are reported on the split that epochs and thresholds are chosen on"


def _positives(data: Data) -> dict[str, int] | None:
    """Return how many training samples each class has, where that is known without fetching them."""
    labels = optional_member(data.train, Split, "labels")
    if not isinstance(labels, torch.Tensor) or data.task == "regression":
        return None
    shape = (len(data.train),) if data.task == "multiclass" else (len(data.train), len(data.classes))
    if tuple(labels.shape) != shape:
        return None
    rows = labels.cpu().numpy()
    truth = true_classes(Predictions(labels=rows, outputs=rows, classes=tuple(data.classes)))
    return dict(zip(data.classes, truth.sum(0).tolist(), strict=True))
