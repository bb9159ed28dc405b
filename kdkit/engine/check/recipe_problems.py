"""Find the problems of a recipe as a whole that are visible without running a network."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from torch import Tensor, nn

from kdkit.data.groups import groups_by_split
from kdkit.data.order import require_sampler
from kdkit.engine.check.metric_problems import metrics_of_unknown_labels, undefined_monitors, unfit_metrics
from kdkit.engine.stage.training_batches import batches_per_epoch
from kdkit.engine.storage.history import KEYS
from kdkit.errors import DataError, KdkitError, RecipeError, did_you_mean
from kdkit.losses.base import BuildContext, allows_any_classes, function_of, option_of
from kdkit.nets.net import NAME_CLASSES, Net, conflict_of_classes, preparation_of
from kdkit.recipe.objective import Term, Truth
from kdkit.recipe.recipe import Recipe, Stage, nets_of, teachers_of


def recipe_problems(recipe: Recipe, context: BuildContext) -> Iterator[str]:
    """Yield the problems of a recipe as a whole: names, the order of stages, metrics, and cache settings.

    context: describes its data.
    """
    yield from _duplicate_names(recipe, context)
    yield from _order_of_stages(recipe)
    yield from _epochs_without_end(recipe)
    yield from _shared_losses(recipe)
    yield from _unknown_monitors(recipe)
    yield from _metrics_named_as_keys(recipe)
    yield from unfit_metrics(recipe, context)
    yield from undefined_monitors(recipe, context)
    yield from metrics_of_unknown_labels(recipe, context)
    yield from _losses_of_ignored_labels(recipe, context)
    yield from _binary_losses_of_numbers(recipe, context)
    yield from _cache_of_largest_outputs(recipe, context)
    yield from _views_of_other_inputs(recipe)
    yield from _teachers_of_other_classes(recipe, context)
    yield from _groups(recipe)


def _duplicate_names(recipe: Recipe, context: BuildContext) -> Iterator[str]:
    for name, count in _repeated(context.classes):
        yield f"{count} classes of the data are called {name!r}; give each class a unique name"
    yield from repeated_names(recipe.stages)
    for name, count in _repeated(stage.name for stage in recipe.stages):
        yield f"{count} stages are called {name!r}; give each stage a unique name: Stage(..., name=...)"


def repeated_names(stages: Sequence[Stage]) -> Iterator[str]:
    """Yield the problems of networks and teachers whose names are not unique.

    Files are named after networks, so their names must be unique in a recipe; those of other teachers in a stage.
    """
    names = [net.name for net in nets_of(stages)]
    for folded, count in _repeated(map(str.casefold, names)):  # not all file systems distinguish upper and lower case
        called = " or ".join(dict.fromkeys(repr(name) for name in names if name.casefold() == folded))
        yield f"{count} nets are called {called}; give each net a unique name"
    for stage in stages:
        matched = {*nets_of([stage]), *(match.teacher for match in stage.matches)}
        for name, count in _repeated(teacher.name for teacher in matched):
            if any(teacher.name == name and not isinstance(teacher, Net) for teacher in matched):
                yield (
                    f"stage {stage.name!r}: {count} different teachers are called {name!r}, for example with "
                    "different options; use the same object in each term, or give them unique names"
                )


def _order_of_stages(recipe: Recipe) -> Iterator[str]:
    if not recipe.stages:
        yield "the schedule has no stages: there is nothing to train"
    earlier: list[str] = []
    trained: set[Net[Any]] = {net for net in nets_of(recipe.stages) if net.trained}
    for stage in recipe.stages:
        if stage.baseline_of and stage.baseline_of not in earlier:
            hint = did_you_mean(stage.baseline_of, earlier) if earlier else "it is the first stage"
            yield f"stage {stage.name!r}: no stage before it is called {stage.baseline_of!r}; {hint}"
        for teacher in stage.teachers:
            if isinstance(teacher, Net) and teacher not in trained and teacher not in stage.objectives:
                weights = "only a part of its weights" if teacher.weights_note else "no weights"
                yield (
                    f"stage {stage.name!r}: net {teacher.name!r} teaches, but it is not trained in an earlier stage "
                    f"and has {weights}; pass Net(..., weights=FILE), or trained=True if its module is already trained"
                )
        earlier.append(stage.name)
        trained |= set(stage.objectives)


def _groups(recipe: Recipe) -> Iterator[str]:
    try:
        groups_by_split(recipe.data)
    except DataError as error:
        yield str(error)


def _epochs_without_end(recipe: Recipe) -> Iterator[str]:
    train = recipe.data.train
    sampler = getattr(train, "sampler", None)  # a LoaderSplit has one only if the user has set it
    try:
        if sampler is not None:
            require_sampler(sampler, train)
    except DataError as error:
        yield str(error)
        return
    for stage in recipe.stages:
        try:
            batches_per_epoch(train, stage.training)
        except KdkitError as error:
            yield f"stage {stage.name!r}: {error}"


def _unknown_monitors(recipe: Recipe) -> Iterator[str]:
    names = [metric.name for metric in recipe.metrics]
    for stage in recipe.stages:
        monitor = stage.training.monitor
        if monitor is not None and monitor not in names:
            hint = did_you_mean(monitor, names)
            yield f"stage {stage.name!r}: {monitor!r} is not among the recipe's metrics; {hint}"


def _metrics_named_as_keys(recipe: Recipe) -> Iterator[str]:
    for metric in recipe.metrics:
        if metric.name in KEYS:
            yield f"a metric is called {metric.name!r}, which is another value in the history of a run; rename it"


def _shared_losses(recipe: Recipe) -> Iterator[str]:
    labels: dict[int, str] = {}  # of the first term that uses a loss, by the id of the loss
    for stage, term in ((part, term) for part in recipe.stages for term in part.terms):
        label = f"{term.label!r} of stage {stage.name!r}"
        loss = term.loss
        has_parameters = isinstance(loss, nn.Module) and any(True for _ in loss.parameters())
        if has_parameters or (isinstance(loss, nn.Module) and hasattr(loss, "build")):
            if id(loss) in labels:
                fact = "has parameters" if has_parameters else "is built for one term"
                yield (
                    f"terms {labels[id(loss)]} and {label} share one {type(loss).__name__}, which {fact}; "
                    "create one for each term"
                )
            labels[id(loss)] = label


def _losses_of_ignored_labels(recipe: Recipe, context: BuildContext) -> Iterator[str]:
    if not context.ignored_labels:
        return
    for term in _terms(recipe):
        index, ignored = option_of(term.loss, "ignore_index"), context.ignored_labels[0]
        if isinstance(index, int) and index not in context.ignored_labels:
            name = getattr(function_of(term.loss), "__name__", type(term.loss).__name__)
            yield (
                f"term {term.label!r}: {name} ignores the label {index}, but in this data "
                f"{ignored} stands for no label; pass ignore_index={ignored} to the loss"
            )


def _binary_losses_of_numbers(recipe: Recipe, context: BuildContext) -> Iterator[str]:
    """Yield binary cross-entropies that are trained on labels outside of [0, 1]."""
    labels = recipe.data.train.labels if context.task == "regression" else None
    if not isinstance(labels, Tensor) or not labels.numel():
        return
    least, most = (label.item() for label in labels.aminmax())
    if least < 0 or most > 1:
        for term in _terms(recipe):
            if _is_binary(term):
                yield (
                    f"term {term.label!r}: {type(term.loss).__name__} takes labels in [0, 1], but those of the "
                    f"training data are numbers from {least:g} to {most:g}; correct them, or use a loss on numbers"
                )


def _cache_of_largest_outputs(recipe: Recipe, context: BuildContext) -> Iterator[str]:
    top = recipe.teacher_cache.top
    if top is not None and context.task != "multiclass":
        yield (
            f"CacheSettings(top={top}) keeps the largest outputs of each sample, which needs one class per sample, "
            f"but this data is {context.task}; leave out top"
        )


def _views_of_other_inputs(recipe: Recipe) -> Iterator[str]:
    for net in nets_of(recipe.stages):
        try:
            preparation_of(net, recipe.data.preparation)
        except RecipeError as error:
            yield f"the view of net {net.name!r} does not suit the data: {error}"


def _teachers_of_other_classes(recipe: Recipe, context: BuildContext) -> Iterator[str]:
    """Yield teachers that keep the weights of a run with other classes, or with the same ones in another order."""
    outputs = [match for stage in recipe.stages for match in stage.matches if match.target is None]
    matches = [match for match in outputs if not allows_any_classes(match.loss)]
    trained = {net for stage in recipe.stages for net in stage.objectives}
    for teacher in dict.fromkeys(chain.from_iterable(map(teachers_of, matches))):
        if not isinstance(teacher, Net) or teacher in trained:
            continue
        conflict = conflict_of_classes(teacher, context.classes)
        if conflict:
            yield f"{conflict}; {NAME_CLASSES}"


def binary_loss_of(recipe: Recipe, stage: Stage) -> str:
    """Return the name of a binary cross-entropy that is trained on labels of regression; "" if there is none.

    Labels that are not visible before training, such as 0, 1 and 2 by class, may be mistaken for numbers.
    """
    is_regression = recipe.data.task == "regression"
    return next((type(term.loss).__name__ for term in stage.terms if is_regression and _is_binary(term)), "")


def _is_binary(term: Term) -> bool:
    return isinstance(term, Truth) and isinstance(term.loss, nn.BCEWithLogitsLoss | nn.BCELoss)


def _terms(recipe: Recipe) -> Iterator[Term]:
    return chain.from_iterable(stage.terms for stage in recipe.stages)


def _repeated(names: Iterable[str]) -> list[tuple[str, int]]:
    """Return names that occur several times, each with its count."""
    return [(name, count) for name, count in Counter(names).items() if count > 1]
