"""Find the problems of a recipe's metrics, by computing them for a few predictions."""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdkit.data.dataset import Data, LoaderSplit
from kdkit.data.groups import groups_of
from kdkit.data.labels import without_ignored
from kdkit.engine.failures.network_errors import line_of_user_code
from kdkit.errors import DataError, KdkitError
from kdkit.losses.base import BuildContext
from kdkit.metrics.base import Metric, MetricResult, NetworkReducing, PositionReducing, Predictions
from kdkit.metrics.bootstrap import BootstrapInterval, without_interval
from kdkit.nets.net import Net
from kdkit.recipe.recipe import Recipe

_ROWS = 8
_VALUES = 4_000_000  # of random outputs, which would be the square of thousands of classes


def unfit_metrics(recipe: Recipe, context: BuildContext) -> Iterator[str]:
    """Yield the problems of metrics that cannot be computed for random outputs of the data's classes.

    Metrics of numbers need the shapes of outputs and labels, which a dry run has: see `number_metric_problems`. Metrics
    that run a network are tried in `validation_problems`.
    """
    if context.task == "regression":
        return
    metrics = [metric for metric in recipe.metrics if not isinstance(without_interval(metric), NetworkReducing)]
    # A student with its own classes is evaluated on those that it shares with the data.
    students = [set(net.classes) for stage in recipe.stages for net in stage.objectives if net.classes is not None]
    shared = [tuple(name for name in context.classes if name in classes) for classes in students]
    for metric, classes in product(metrics, dict.fromkeys([context.classes, *filter(None, shared)])):
        if not context.position_dims:
            is_whole = _rows_of_samples(classes) > 2 * len(classes)
            checked = metric if is_whole else without_interval(metric)
            reason = _problem(checked, partial(_of_samples, classes, context, recipe.data))
        elif getattr(without_interval(metric), "accepts_positions", False):
            # A thousand resamples would take a gigabyte if the classes are a vocabulary.
            checked = replace(metric, resamples=2) if isinstance(metric, BootstrapInterval) else metric
            predict = partial(_of_positions, without_interval(metric), classes, context, recipe.data)
            reason = _problem(checked, predict)
        else:
            yield (
                f"metric {metric.name!r} takes one label per sample, but this data has labels per position; "
                "use MeanIoU, Accuracy, TopKAccuracy, F1, CrossEntropy or Perplexity, or a metric with the "
                "attribute accepts_positions = True, which gets predicted classes, and logits in its method "
                "reduce_positions"
            )
            continue
        if reason is not None:
            yield f"metric {metric.name!r} does not fit this data ({context.task}): {reason}"


def undefined_monitors(recipe: Recipe, context: BuildContext) -> Iterator[str]:
    """Yield monitored metrics that are undefined because the visible labels of the validation split are all equal."""
    truth = recipe.data.validation.labels
    if not isinstance(truth, Tensor) or not truth.ndim or not len(truth):
        return
    labels = without_ignored(truth, context.ignored_labels).cpu().numpy()
    if context.task == "multiclass" and labels.ndim == 2:  # soft labels
        labels = labels.argmax(1)
    # If a column has two values, some classes of a macro average may be undefined, but not all of them.
    if not len(labels) or (labels != labels[0]).any():
        return
    outputs = np.random.default_rng(0).standard_normal((len(labels), len(context.classes)))
    predictions = _predictions(recipe.data, labels=labels, outputs=outputs, classes=context.classes)
    metrics = {metric.name: without_interval(metric) for metric in recipe.metrics}
    for stage in recipe.stages:
        monitor = stage.training.monitor or next(iter(metrics))
        if stage.training.keep == "last" or monitor not in metrics:
            continue
        with warnings.catch_warnings(), contextlib.suppress(Exception):  # as in `_problem`
            warnings.simplefilter("ignore")
            result = metrics[monitor].fit(predictions).compute(predictions)
            if math.isnan(result.value):
                yield (
                    f"stage {stage.name!r}: {monitor!r} is undefined on the validation split"
                    f"{f' ({result.note})' if result.note else ''}, so it cannot choose the best epoch; validate "
                    "on other samples, monitor another metric, Training(monitor=...), or keep the last epoch, "
                    "Training(keep='last')"
                )


def metrics_of_unknown_labels(recipe: Recipe, context: BuildContext) -> Iterator[str]:
    """Yield the problems of metrics that do not leave out unknown labels, if the data may have them."""
    if not context.has_unknown:
        return
    for metric in recipe.metrics:
        if not getattr(without_interval(metric), "accepts_unknown", False):
            yield (
                f"metric {metric.name!r} does not leave out unknown labels, which this data may have; if it does, "
                "set its attribute accepts_unknown = True"
            )


def number_metric_problems(
    recipe: Recipe, context: BuildContext, net: Net[Any], split: str, output: Tensor, labels: Tensor
) -> Iterator[str]:
    """Yield the problems of metrics of numbers, whose labels and outputs may have any shape, such as packed ones.

    output, labels: of a network in eval mode, and of the same samples. split: the name of their split.
    """
    if output.is_complex():
        yield (
            f"net {net.name!r} has outputs of {output.dtype}, but metrics take real numbers: pass "
            "Net(..., element=torch.view_as_real)"
        )
        return
    arrays: list[NDArray[Any]] = [labels.cpu().numpy(), output.detach().float().cpu().numpy()]
    random = np.random.default_rng(0)
    noise = [random.standard_normal((_ROWS, *array.shape[1:])) for array in arrays]
    for metric in map(without_interval, recipe.metrics):
        if isinstance(metric, NetworkReducing):
            continue
        # The labels of a few samples may be all alike, for which a metric of user code may raise.
        reasons = [
            _problem(
                metric, partial(_predictions, recipe.data, labels=truth, outputs=predicted, classes=context.classes)
            )
            for truth, predicted in (arrays, noise)
        ]
        if None not in reasons:
            yield (
                f"metric {metric.name!r} does not fit the {split} data (regression) and net {net.name!r}: {reasons[0]}"
            )


def _problem(metric: Metric, predict: Callable[[], Predictions]) -> str | None:
    """Return the reason why a metric cannot be computed for the predictions that a function returns, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # these predictions may be degenerate, real ones need not be
            predictions = predict()
            arrays = (predictions.labels, predictions.outputs)
            before = [array.copy() for array in arrays]
            fitted: Any = metric.fit(predictions)
            if fitted is None:
                return "fit must return the metric with its thresholds, or self; it returned None"
            result = fitted.compute(predictions)
    except KdkitError as error:
        return str(error)
    except Exception as error:  # a user-defined metric may raise anything
        return f"{type(error).__name__}: {error}{line_of_user_code(error)}"
    if not isinstance(result, MetricResult):
        return f"compute must return MetricResult(value=...); it returned a {type(result).__name__}"
    if not all(map(partial(np.array_equal, equal_nan=True), arrays, before)):
        return "it changes labels or outputs in place, but other metrics get the same arrays; compute on a copy"
    return None


def _predictions(data: Data, *, labels: NDArray[Any], **columns: Any) -> Predictions:
    """Return predictions with ids and groups of validation samples, repeated if there are fewer, if these have any.

    For some of the samples, three in a row have one group, because the first ones may all be of one patient.
    """
    split, count = data.validation, len(labels)
    ids = groups = None
    if not isinstance(split, LoaderSplit) and len(split):
        ids = np.resize(split.ids.cpu().numpy(), count)
    with contextlib.suppress(DataError):  # another problem
        of_split = groups_of(split, None)
        if of_split is not None and len(of_split):
            units = np.unique(of_split[:: max(1, len(of_split) // count)])
            groups = of_split if len(of_split) == count else units[np.arange(count) // 3 % len(units)]
    return Predictions(labels=labels, ids=ids, groups=groups, **columns)


def _of_samples(classes: tuple[str, ...], context: BuildContext, data: Data) -> Predictions:
    """Return random outputs for random labels of the same kind as in the data, one per sample."""
    random = np.random.default_rng(0)
    outputs = random.standard_normal((_rows_of_samples(classes), len(classes)))
    labels: NDArray[Any] = np.arange(len(outputs)) % len(classes)
    if context.task == "multilabel":
        labels = (labels[:, None] == np.arange(len(classes))).astype(float)
    return _predictions(data, labels=labels, outputs=outputs, classes=classes)


def _rows_of_samples(classes: tuple[str, ...]) -> int:
    """Return how many samples metrics are tried on: at least two of each class, if there are not too many classes."""
    return max(_ROWS, min(2 * len(classes) + 2, _VALUES // len(classes)))


def _of_positions(metric: Metric, classes: tuple[str, ...], context: BuildContext, data: Data) -> Predictions:
    """Return random decisions for random labels per position, and what the metric keeps of the logits."""
    random, is_multiclass = np.random.default_rng(0), context.task == "multiclass"
    logits = random.standard_normal((4, len(classes), *(2,) * context.position_dims), dtype=np.float32)
    decisions = logits.argmax(1) if is_multiclass else logits >= 0
    labels = random.integers(0, len(classes) if is_multiclass else 2, decisions.shape)
    reduced: dict[str, NDArray[Any]] = {}
    if isinstance(metric, PositionReducing):
        reduced[metric.name] = metric.reduce_positions(torch.from_numpy(logits), torch.from_numpy(labels)).numpy()
    columns = {"outputs": decisions, "classes": classes, "per_position": True, "reduced": reduced}
    return _predictions(data, labels=labels, **columns)
