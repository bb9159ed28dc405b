"""The record of a run, `run.json`: everything that its results depend on. Resuming a run compares it."""

import hashlib
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kdkit import __version__
from kdkit.data.dataset import Data, LoaderSplit
from kdkit.data.labels import without_ignored
from kdkit.data.order import describe_sampler
from kdkit.engine.check.plan import Plan
from kdkit.engine.options import RunOptions
from kdkit.errors import DataError, shortened
from kdkit.losses.base import describe_loss
from kdkit.metrics.base import Predictions, class_indices, true_classes
from kdkit.metrics.bootstrap import without_interval
from kdkit.nets.net import Net, preparation_of
from kdkit.recipe.baseline import baseline_notices, baselines_of
from kdkit.recipe.recipe import Recipe, monitored_metric
from kdkit.utils import collectives
from kdkit.utils.devices import uses_tf32
from kdkit.utils.signatures import parameters_by_name

# The start of a number, a collection or a string in quotes, or a whole constant.
_NO_WORD = r"""-?[\d(\[{'"]|-?(None|True|False|inf|nan)$"""
# The fields of a TermSummary that are recorded.
_OF_TERMS = ("label", "loss", "weight", "factors", "taps", "student_net", "teacher")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The source of a recipe.

    file: the recipe file, which is copied into the run folder. function: the name of the recipe function of a trial; a
    file may have several. options: the arguments of the recipe. command: the record of the command that started the
    run, which can be repeated. source: the content of the file. If None, it is read immediately, because the file may
    be edited while the run prepares its data or earlier trials of a study run.
    """

    file: Path | None = None
    function: str | None = None
    options: Mapping[str, Any] | None = None
    command: Mapping[str, Any] | None = None
    source: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.file is not None and self.source is None:
            object.__setattr__(self, "source", self.file.read_bytes())

    @property
    def sha256(self) -> str | None:
        """The digest of the recipe file, or None."""
        return None if self.source is None else hashlib.sha256(self.source).hexdigest()


def run_name(recipe: Recipe, origin: Origin) -> str:
    """Return the name of a run: the name of the recipe, or that of its file."""
    return recipe.name or ("recipe" if origin.file is None else origin.file.stem)


def run_record(recipe: Recipe, plan: Plan, options: RunOptions, device: torch.device, origin: Origin) -> dict[str, Any]:
    """Return the contents of `run.json`."""
    data = recipe.data
    trained = list(dict.fromkeys(net for stage in plan.stages for net in stage.objectives))
    return {
        "recipe": run_name(recipe, origin),
        "recipe_sha256": origin.sha256,
        "function": origin.function,
        "options": option_texts(origin.options),
        "command": origin.command,
        "seed": options.seed,
        "device": str(device),
        "threads": torch.get_num_threads(),  # their number changes how sums are split and rounded
        "deterministic": options.deterministic,
        "precision": options.precision,
        "tf32": uses_tf32() if device.type == "cuda" else None,
        "processes": collectives.world_size(),
        "task": data.task,
        "data": data.fingerprint,
        "training_samples": data.train_digest,
        "training_size": None if isinstance(data.train, LoaderSplit) else len(data.train),
        "sampler": describe_sampler(data.train),
        "draws": data.draws,
        "stages": [stage.name for stage in plan.stages],
        "baseline": options.baseline,
        "baselines": dict(baselines_of(plan.stages)),
        "terms": {
            part.stage.name: [
                {key: getattr(summary, key) for key in _OF_TERMS} | {"options": _options_of(term.loss)}
                for summary, term in zip(part.terms, part.stage.terms, strict=True)
            ]
            for part in plan.stage_plans
        },
        "positives": _positives(data),
        "classes": {net.name: list(net.classes or data.classes) for net in trained},
        "preparations": {net.name: preparation_of(net, data.preparation) for net in trained},
        "nets": {
            net.name: {"parameters": net.parameters, "view": net.view.key, "version": net.version} for net in plan.nets
        },
        "hub_names": {net.name: name for net in plan.nets if net.trained and (name := hub_name(net)) is not None},
        # workers=None is recorded as 0: the number depends on the device, and a run may resume on another device.
        "trainings": [repr(replace(stage.training, workers=stage.training.workers or 0)) for stage in plan.stages],
        "monitors": {stage.name: repr(without_interval(monitored_metric(recipe, stage))) for stage in plan.stages},
        "teacher_cache": recipe.teacher_cache.form,
        "notices": list(notices(recipe, plan)),
        "versions": versions(),
        "plugin_code": plugin_code(),
        "platform": platform.platform(),
    }


def option_texts(options: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the options of a recipe as recorded: as strings, in quotes if they look like another value."""
    return {name: _text(value) for name, value in (options or {}).items()}


def _text(value: Any) -> str:
    if isinstance(value, set | frozenset):  # whose order differs from process to process
        return f"{{{', '.join(sorted(map(repr, value)))}}}"
    return repr(value) if isinstance(value, str) and re.match(_NO_WORD, value) else str(value)


def hub_name(net: Net[Any]) -> str | None:
    """Return the name that a timm or transformers model has on the Hugging Face hub, or None."""
    settings = getattr(net.module, "pretrained_cfg", None)  # of timm
    name = settings.get("hf_hub_id") if isinstance(settings, Mapping) else None
    if name is None:
        name = getattr(getattr(net.module, "config", None), "_name_or_path", None)  # of transformers; may be ""
    # For a model that was loaded from a folder, it is the path.
    is_name = (
        isinstance(name, str) and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name, re.ASCII) and not Path(name).exists()
    )
    return str(name) if is_name else None


def versions() -> dict[str, str]:
    """Return the versions of kdkit, torch and Python, and of the packages of installed plugins."""
    packages = [point.dist for point in entry_points(group="kdkit") if point.dist is not None]
    plugins = {package.name: package.version for package in sorted(packages, key=lambda package: package.name)}
    own = {"kdkit": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return own | {name: version for name, version in plugins.items() if name not in own}


def plugin_code() -> dict[str, str]:
    """Return a digest of the Python files of each package with installed plugins, except for kdkit.

    The version of a package that is being written stays the same.
    """
    digests = {}
    for point in entry_points(group="kdkit"):
        if point.dist is None or point.dist.name == "kdkit":
            continue
        with suppress(ImportError, OSError, ValueError):  # a broken package, which is skipped with a warning
            spec = find_spec(point.module.partition(".")[0])
            folders = [*map(Path, (spec and spec.submodule_search_locations) or ())]
            files = [(file.relative_to(folder), file) for folder in folders for file in folder.rglob("*.py")]
            if spec is not None and spec.origin is not None and not folders:
                files = [(Path(spec.name), Path(spec.origin))]
            digest = hashlib.sha256()
            for name, file in sorted(files):
                digest.update(f"{name.as_posix()}:".encode() + hashlib.sha256(file.read_bytes()).digest())
            digests[point.dist.name] = digest.hexdigest()[:16]
    return digests


def settings_of(plan: Plan, options: RunOptions) -> dict[str, str | int | float | bool]:
    """Return the settings of a run and its stages by name, as loggers record them."""
    settings: dict[str, str | int | float | bool] = {
        name: getattr(options, name) for name in ("seed", "precision", "compile", "deterministic")
    }
    for stage in plan.stages:
        training = stage.training
        numbers: dict[str, Any] = {
            "batch_size": plan.loader_batch or training.batch_size,
            "max_grad_norm": training.max_grad_norm,
            "learning_rate": training.optimizer.options.get("lr"),
        }
        values = {
            **{name: getattr(training, name) for name in ("epochs", "accumulate_steps")},
            # They may be numbers of numpy or tensors.
            **{name: number.item() if hasattr(number, "item") else number for name, number in numbers.items()},
            "optimizer": str(training.optimizer),
            "lr_schedule": None if training.lr_schedule is None else str(training.lr_schedule),
        }
        settings.update({f"{stage.name}/{name}": value for name, value in values.items() if value is not None})
    return settings


def notices(recipe: Recipe, plan: Plan) -> Iterator[str]:
    """Yield notices for the reader of the results: about the data, and about what is not reproducible."""
    data = recipe.data
    yield from str(data.summary).splitlines()
    if isinstance(data.notices, str):  # each character would be a notice
        raise DataError(f"notices of the data must be a tuple of texts; got the text {shortened(data.notices, 60)}")
    yield from data.notices
    if data.draws is None:
        yield (
            "the data may draw random numbers, so runs repeat exactly only if it draws them from the random states of "
            "Python, NumPy and torch, which are seeded"
        )
    yield from filter(None, (net.weights_note for net in plan.nets))
    yield from plan.notices
    yield from dict.fromkeys(baseline_notices(plan.stages))  # stages of one student may have the same notice
    yield from _notices_of_ranks([net.network for stage in plan.stages for net in stage.objectives])
    if data.test is None:
        yield (
            "there is no test split: metrics are computed on the validation split, which is also used to choose epochs "
            "and thresholds"
        )


def _options_of(loss: object) -> dict[str, str]:
    """Return the options of a loss that its text leaves out, as that of torch's losses does; tensors as a digest."""
    if not isinstance(loss, nn.Module) or loss.extra_repr():
        return {}
    options = {name: getattr(loss, name) for name in parameters_by_name(type(loss)) if hasattr(loss, name)}
    return {
        name: hashlib.sha256(repr(value.tolist()).encode()).hexdigest()[:16]
        if isinstance(value, torch.Tensor)
        else describe_loss(value)
        for name, value in options.items()
        if not isinstance(value, nn.Parameter)  # initial weights, which differ between seeds
    }


def _positives(data: Data) -> dict[str, int] | None:
    """Return the number of training samples of each class, or None if it is unknown without reading them."""
    labels = data.train.labels
    if not isinstance(labels, torch.Tensor) or data.task == "regression":
        return None
    # Samples without a label do not count for any class.
    shape = (len(data.train),) if data.task == "multiclass" else (len(data.train), len(data.classes))
    if tuple(labels.shape) != shape:
        return None
    rows = without_ignored(labels, data.ignored_labels).cpu().numpy()
    predictions = Predictions(labels=rows, outputs=rows, classes=tuple(data.classes))
    if rows.ndim == 1:
        counts = np.bincount(class_indices(predictions), minlength=len(data.classes))
    else:
        counts = true_classes(predictions).sum(0)
    return dict(zip(data.classes, counts.tolist(), strict=True))


def _notices_of_ranks(modules: Iterable[nn.Module]) -> Iterator[str]:
    """Yield notices for the reader of the results of several ranks."""
    if not collectives.is_distributed():
        return
    yield f"{collectives.world_size()} processes divide each batch; a loss that compares samples sees only one part"
    if any(_has_batch_statistics(part) for module in modules for part in module.modules()):
        yield "batch norm computes its statistics from the part of the batch in each process"


def _has_batch_statistics(part: nn.Module) -> bool:
    """Whether a module is a batch norm that is neither frozen nor synchronized."""
    if not isinstance(part, nn.modules.batchnorm._BatchNorm) or isinstance(part, nn.SyncBatchNorm):
        return False
    parameters = list(part.parameters())
    return not parameters or any(parameter.requires_grad for parameter in parameters)
