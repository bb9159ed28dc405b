"""Find the problems of a recipe as a whole that are visible without running a network."""

import contextlib
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdkit.data.labels import without_ignored
from kdkit.engine.check.metric_problem import metric_problem
from kdkit.engine.stage.training_batches import batches_per_epoch
from kdkit.errors import KdkitError, did_you_mean
from kdkit.losses.base import BuildContext
from kdkit.metrics.base import Metric, PositionReducing, Predictions
from kdkit.metrics.bootstrap import without_interval
from kdkit.nets.net import Net
from kdkit.recipe.objective import Term, Truth
from kdkit.recipe.recipe import Recipe, Stage, nets_of


def recipe_problems(recipe: Recipe, stages: Sequence[Stage], context: BuildContext) -> Iterator[str]:
    """Yield the problems of a recipe as a whole: names, the order of stages, metrics, and cache settings.

    context: describes its data.
    """
    return _RecipeChecks(recipe, stages, context).problems()


class _RecipeChecks:
    """The checks of a recipe as a whole. Each method yields the problems of one kind."""

    def __init__(self, recipe: Recipe, stages: Sequence[Stage], context: BuildContext) -> None:
        self.recipe = recipe
        self.stages = stages
        self.terms = [term for stage in stages for term in stage.terms]
        self.context = context

    def problems(self) -> Iterator[str]:
        """Yield all problems."""
        data = self.recipe.data
        for name, count in Counter(data.classes).items():
            if count > 1:
                yield f"{count} classes of the data are called {name!r}; give each class a unique name"
        if not self.stages:
            yield f"{type(self.recipe.schedule).__name__} returns no stages: there is nothing to train"
        yield from self._duplicate_names()
        yield from self._baselines_of_no_stage()
        yield from self._untrained_teachers()
        yield from self._unknown_monitors()
        yield from self._shared_losses()
        yield from self._metric_problems()
        yield from self._epochs_without_end()
        yield from self._undefined_monitors()
        yield from self._metrics_of_unknown_labels()
        yield from self._losses_of_ignored_labels()
        yield from self._binary_losses_of_numbers()
        top = self.recipe.teacher_cache.top
        if top is not None and data.task != "multiclass":
            yield (
                f"CacheSettings(top={top}) keeps the largest outputs of each sample, which needs one class per sample, "
                f"but this data is {data.task}; leave out top"
            )

    def _duplicate_names(self) -> Iterator[str]:
        # Files are named after networks and stages, so their names must be unique in the recipe. Names of other
        # teachers must be unique in a stage.
        for name, count in Counter(net.name for net in nets_of(self.stages)).items():
            if count > 1:
                yield f"{count} nets are called {name!r}; give each net a unique name"
        for stage in self.stages:
            matched = {*nets_of([stage]), *(match.teacher for match in stage.matches)}
            for name, count in Counter(teacher.name for teacher in matched).items():
                if count > 1 and any(teacher.name == name and not isinstance(teacher, Net) for teacher in matched):
                    yield (
                        f"stage {stage.name!r}: {count} different teachers are called {name!r}, for example with "
                        "different options; use the same object in each term, or give them unique names"
                    )
        for name, count in Counter(stage.name for stage in self.stages).items():
            if count > 1:
                yield f"{count} stages are called {name!r}; give each stage a unique name: Stage(..., name=...)"

    def _baselines_of_no_stage(self) -> Iterator[str]:
        for index, stage in enumerate(self.stages):
            earlier = [before.name for before in self.stages[:index]]
            if stage.baseline_of and stage.baseline_of not in earlier:
                hint = did_you_mean(stage.baseline_of, earlier) if earlier else "it is the first stage"
                yield f"stage {stage.name!r}: no stage before it is called {stage.baseline_of!r}; {hint}"

    def _untrained_teachers(self) -> Iterator[str]:
        trained: set[Net[Any]] = {net for net in nets_of(self.stages) if net.trained}
        for stage in self.stages:
            for teacher in stage.teachers:
                if isinstance(teacher, Net) and teacher not in trained and teacher not in stage.objectives:
                    weights = "only a part of its weights" if teacher.weights_note else "no weights"
                    yield (
                        f"stage {stage.name!r}: net {teacher.name!r} teaches, but it is not trained in an earlier "
                        f"stage and has {weights}; pass Net(..., weights=FILE), or trained=True if its module is "
                        "already trained"
                    )
            trained |= set(stage.objectives)

    def _unknown_monitors(self) -> Iterator[str]:
        names = [metric.name for metric in self.recipe.metrics]
        for stage in self.stages:
            monitor = stage.training.monitor
            if monitor is not None and monitor not in names:
                hint = did_you_mean(monitor, names)
                yield f"stage {stage.name!r}: {monitor!r} is not among the recipe's metrics; {hint}"

    def _shared_losses(self) -> Iterator[str]:
        labels: dict[int, str] = {}  # of the first term that uses a loss, by the id of the loss
        for term in self.terms:
            loss = term.loss
            if isinstance(loss, nn.Module) and (hasattr(loss, "build") or any(True for _ in loss.parameters())):
                if id(loss) in labels:
                    fact = "has parameters" if any(True for _ in loss.parameters()) else "is built for one term"
                    yield (
                        f"terms {labels[id(loss)]!r} and {term.label!r} share one {type(loss).__name__}, which {fact}; "
                        "create one for each term"
                    )
                labels[id(loss)] = term.label

    def _metric_problems(self) -> Iterator[str]:
        """Compute every metric for random outputs, so that a metric that does not fit is found before training.

        Metrics of numbers need the shapes of outputs and labels, which a dry run has: see `number_metric_problems`.
        """
        if self.recipe.data.task == "regression" and self.context.has_labels:
            return
        names = tuple(self.recipe.data.classes)
        # A student with its own classes is evaluated on those that it shares with the data.
        students = [set(net.classes) for stage in self.stages for net in stage.objectives if net.classes is not None]
        shared = [tuple(name for name in names if name in classes) for classes in students]
        for metric, classes in product(self.recipe.metrics, dict.fromkeys([names, *filter(None, shared)])):
            if self.context.position_dims and not getattr(without_interval(metric), "accepts_positions", False):
                yield (
                    f"metric {metric.name!r} takes one label per sample, but this data has labels per position; "
                    "use MeanIoU, Accuracy, TopKAccuracy, F1, CrossEntropy or Perplexity, or a metric with the "
                    "attribute accepts_positions = True, which gets predicted classes, and logits in its method "
                    "reduce_positions"
                )
                continue
            # Intervals would take a gigabyte if the classes are a vocabulary.
            checked = without_interval(metric) if self.context.position_dims else metric
            reason = metric_problem(checked, partial(self._random_predictions, checked, classes))
            if reason is not None:
                yield f"metric {metric.name!r} does not fit this data ({self.recipe.data.task}): {reason}"

    def _random_predictions(self, metric: Metric, classes: tuple[str, ...]) -> Predictions:
        """Return random outputs for random labels of the same kind as in the data."""
        random, is_multiclass = np.random.default_rng(0), self.recipe.data.task == "multiclass"
        labels: NDArray[Any]
        if not self.context.position_dims:
            outputs = random.standard_normal((2 * len(classes) + 2, len(classes)))
            # Labels of a binary loss are in [0, 1]. If others turn out to be numbers, reading them raises an error.
            if self.recipe.data.task == "regression" and not any(map(_is_binary, self.terms)):
                numbers = random.integers(1, 4, outputs.shape) + 0.5
                return Predictions(labels=numbers, outputs=outputs, classes=classes)
            targets = np.arange(len(outputs)) % len(classes)
            labels = targets if is_multiclass else np.eye(len(classes))[targets]
            return Predictions(labels=labels, outputs=outputs, classes=classes)
        logits = random.standard_normal((4, len(classes), *(2,) * self.context.position_dims), dtype=np.float32)
        decisions = logits.argmax(1) if is_multiclass else logits >= 0
        labels = random.integers(0, len(classes) if is_multiclass else 2, decisions.shape)
        reduced: dict[str, NDArray[Any]] = {}
        if isinstance(metric, PositionReducing):
            reduced[metric.name] = metric.reduce_positions(torch.from_numpy(logits), torch.from_numpy(labels)).numpy()
        return Predictions(labels=labels, outputs=decisions, classes=classes, per_position=True, reduced=reduced)

    def _epochs_without_end(self) -> Iterator[str]:
        for stage in self.stages:
            try:
                batches_per_epoch(self.recipe.data.train, stage.training)
            except KdkitError as error:
                yield f"stage {stage.name!r}: {error}"

    def _undefined_monitors(self) -> Iterator[str]:
        """Compute the monitored metrics for the labels of the validation split if they are visible and all equal."""
        data = self.recipe.data
        truth = data.validation.labels
        if not isinstance(truth, Tensor) or not truth.ndim or not len(truth):
            return
        labels = without_ignored(truth, self.context.ignored_labels).cpu().numpy()
        if data.task == "multiclass" and labels.ndim == 2:  # soft labels
            labels = labels.argmax(1)
        # If a column has two values, some classes of a macro average may be undefined, but not all of them.
        if not len(labels) or (labels != labels[0]).any():
            return
        outputs = np.random.default_rng(0).standard_normal((len(labels), len(data.classes)))
        predictions = Predictions(labels=labels, outputs=outputs, classes=tuple(data.classes))
        metrics = {metric.name: without_interval(metric) for metric in self.recipe.metrics}
        for stage in self.stages:
            monitor = stage.training.monitor or next(iter(metrics))
            if stage.training.keep == "last" or monitor not in metrics:
                continue
            with warnings.catch_warnings(), contextlib.suppress(Exception):  # see `metric_problem`
                warnings.simplefilter("ignore")
                result = metrics[monitor].fit(predictions).compute(predictions)
                if math.isnan(result.value):
                    yield (
                        f"stage {stage.name!r}: {monitor!r} is undefined on the validation split"
                        f"{f' ({result.note})' if result.note else ''}, so it cannot choose the best epoch; validate "
                        "on other samples, monitor another metric, Training(monitor=...), or keep the last epoch, "
                        "Training(keep='last')"
                    )

    def _metrics_of_unknown_labels(self) -> Iterator[str]:
        """Check that all metrics leave out unknown labels if the data may have them."""
        if not self.context.has_unknown:
            return
        for metric in self.recipe.metrics:
            if not getattr(without_interval(metric), "accepts_unknown", False):
                yield (
                    f"metric {metric.name!r} does not leave out unknown labels, which this data may have; if it does, "
                    "set its attribute accepts_unknown = True"
                )

    def _losses_of_ignored_labels(self) -> Iterator[str]:
        """Check that the `ignore_index` of a loss is the one of the data."""
        ignored = self.context.ignored_labels
        for term in self.terms if ignored else ():
            index = getattr(term.loss, "ignore_index", None)
            if isinstance(index, int) and index not in ignored:
                yield (
                    f"term {term.label!r}: {type(term.loss).__name__} ignores the label {index}, but in this data "
                    f"{ignored[0]} stands for no label; pass ignore_index={ignored[0]} to the loss"
                )

    def _binary_losses_of_numbers(self) -> Iterator[str]:
        """Check that binary cross-entropy is not trained on labels outside of [0, 1]."""
        data = self.recipe.data
        labels = data.train.labels if data.task == "regression" else None
        if not isinstance(labels, Tensor) or not labels.numel():
            return
        least, most = (label.item() for label in labels.aminmax())
        for term in self.terms if least < 0 or most > 1 else ():
            if _is_binary(term):
                yield (
                    f"term {term.label!r}: {type(term.loss).__name__} takes labels in [0, 1], but those of the "
                    f"training data are numbers from {least:g} to {most:g}; correct them, or use a loss on numbers"
                )


def binary_loss_of(recipe: Recipe, stage: Stage) -> str:
    """Return the name of a binary cross-entropy that is trained on labels of regression; "" if there is none.

    Labels that are not visible before training, such as 0, 1 and 2 by class, may be mistaken for numbers.
    """
    is_regression = recipe.data.task == "regression"
    return next((type(term.loss).__name__ for term in stage.terms if is_regression and _is_binary(term)), "")


def _is_binary(term: Term) -> bool:
    return isinstance(term, Truth) and isinstance(term.loss, nn.BCEWithLogitsLoss | nn.BCELoss)
