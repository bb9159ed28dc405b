"""Check the contract of a metric: its values, thresholds and resamples, and no side effects."""

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import torch

from kdkit.data.dataset import Task
from kdkit.errors import ContractError, KdkitError, describe, shortened
from kdkit.metrics.base import (
    Metric,
    NetworkReducing,
    PositionReducing,
    Predictions,
    is_better,
    is_biased,
    lower_is_better,
    takes_any_outputs,
)
from kdkit.metrics.bootstrap import without_interval
from kdkit.metrics.resampling import Resampling, draw_counts, drawn_samples
from kdkit.testing.metric_case import Example, MetricCase, correct_predictions

_FLAGS = ("lower_is_better", "accepts_unknown", "accepts_positions", "any_outputs", "is_biased")
_LEAST = 8  # samples
_RTOL, _ATOL = 1e-4, 1e-5  # sums in float32 depend on their order
_DOUBLED_RTOL = 2e-2  # of a value on each sample twice: an unbiased variance of 60 samples changes by 1 %
_BETTER_RTOL = 0.1  # a metric of the outputs alone, such as an entropy, may differ by chance
_UNDEFINED = (
    "; if it is undefined, return MetricResult(value=float('nan')): resamples for intervals, or the validation split "
    "of a short trial, may be like this"
)
_UNFITTED = "; if it cannot choose thresholds, return a metric with any valid ones"


def check_metric(
    metric: Metric,
    *,
    task: Task = "multiclass",
    position_dims: Literal[0, 1, 2, 3] = 0,
    predictions: Predictions | None = None,
    ignores_unlabelled: bool = True,
) -> None:
    """Check a metric. Raises ContractError for the first check that fails.

    task: the labels of the 60 samples that it is checked on: one of 10 classes, 10 labels of 0 and 1, or two positive
    numbers with outputs of the same shape.
    position_dims: of the labels of each sample: 1 for tokens, 2 for pixels, 3 for voxels, for a metric that accepts
    positions.
    predictions: other predictions to check, of a network that is right, for a metric that needs certain classes,
    shapes, ids or groups. They have at least 8 samples with different labels.
    ignores_unlabelled: whether positions without a label must not count.

    The value is finite, also if some or all predictions are wrong, and those of a network that is right are not worse.
    It is the same for the same predictions, in any order, and with each sample twice, unless the metric declares
    `is_biased`. Predictions without ids or groups are computed, or refused by a KdkitError. One sample, equal labels,
    equal outputs and a class without positives raise no error: an undefined value is NaN. `fit` returns a metric and
    does not change one that was fitted before. Labels and outputs stay unchanged. A method `resampled` agrees with
    `compute` on the drawn samples. Values by class have names of classes. With `accepts_unknown`, unknown labels and
    their outputs do not count. With `any_outputs`, there may be more columns. `reduce_positions` treats each sample of
    a batch on its own.
    """
    correct = _validated(metric, task, position_dims, predictions)
    case = MetricCase(without_interval(metric), correct, task, position_dims)
    checks: list[Callable[[MetricCase], None]] = [
        _is_finite,
        _is_best_if_correct,
        _depends_only_on_predictions,
        _fit_changes_no_other_metric,
        _ignores_the_order,
        _needs_no_ids,
        _ignores_the_number_of_samples,
        _accepts_degenerate_samples,
        _resamples_as_it_computes,
        _leaves_out_unknown_labels,
        _accepts_any_outputs,
        _reduces_each_sample_alone,
        *([_ignores_positions_without_a_label] if ignores_unlabelled else []),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of divisions by 0 for degenerate samples
        for check in checks:
            check(case)


def _validated(metric: Any, task: Task, position_dims: int, predictions: Any) -> Predictions:
    """Return the predictions to check. Raises ContractError for wrong arguments, and for wrong attributes."""
    if isinstance(metric, type) or not isinstance(metric, Metric):
        raise ContractError(
            f"check_metric takes a metric with a name, fit and compute, such as MyMetric(); got {describe(metric)}"
        )
    if isinstance(without_interval(metric), NetworkReducing):
        raise ContractError(
            f"metric {metric.name!r} runs a network, which check_metric does not have; test it in a short run"
        )
    if not isinstance(metric.name, str) or not metric.name:
        raise ContractError(f"the name of a metric must be a string, such as 'accuracy'; got {describe(metric.name)}")
    for flag in _FLAGS:
        value = getattr(metric, flag, False)
        if not isinstance(value, bool):
            raise ContractError(
                f"{flag} of metric {metric.name!r} must be True or False, an attribute or a property; got "
                f"{describe(value)}"
            )
    if task not in get_args(Task):
        raise ContractError(f"task must be one of {', '.join(get_args(Task))}; got {task!r}")
    dims = {0} if task == "regression" or predictions is not None else {0, 1, 2, 3}
    if position_dims not in dims:
        options = "0, because numbers and predictions=... are per sample" if dims == {0} else "0, 1, 2 or 3"
        raise ContractError(f"position_dims must be {options}; got {position_dims!r}")
    if position_dims and not getattr(without_interval(metric), "accepts_positions", False):
        raise ContractError(
            f"metric {metric.name!r} does not accept labels per position; set its attribute accepts_positions = True"
        )
    if predictions is None:
        return correct_predictions(task, position_dims)
    if (
        not isinstance(predictions, Predictions)
        or len(predictions) < _LEAST
        or predictions.per_position
        or predictions.outputs.ndim < 2
    ):
        raise ContractError(
            f"predictions must be kdkit.Predictions of at least {_LEAST} samples, with labels per sample and outputs "
            f"(samples, columns); got {shortened(predictions, 200)}"
        )
    if (predictions.labels == predictions.labels[:1]).all():
        raise ContractError(
            f"predictions must have samples with different labels; got {len(predictions)} samples with equal ones"
        )
    return predictions


def _is_finite(case: MetricCase) -> None:
    advice = (
        f"; these are labels {case.correct.predictions.labels.shape} and outputs "
        f"{case.correct.predictions.outputs.shape}: for labels of another kind, pass task='multilabel' or "
        "task='regression', and for other classes, shapes, ids or groups, pass predictions=..."
    )
    fitted = case.fit(advice=advice)
    for example in (case.correct, case.mixed, case.wrong):
        case.finite(fitted, example, advice)


def _is_best_if_correct(case: MetricCase) -> None:
    fitted = case.fit()
    correct, wrong = (case.finite(fitted, example) for example in (case.correct, case.wrong))
    if is_better(case.metric, wrong, correct) and not _close(wrong, correct, rtol=_BETTER_RTOL):
        is_lower = lower_is_better(case.metric)
        remedy = "leave out lower_is_better" if is_lower else "set its attribute lower_is_better = True"
        raise ContractError(
            f"{case.name} is {correct:g} for correct predictions, and {wrong:g}, which is better, for wrong ones; if "
            f"{'higher' if is_lower else 'lower'} values are better, {remedy}"
        )


def _depends_only_on_predictions(case: MetricCase) -> None:
    fitted = case.fit()
    first, _, again = (case.finite(fitted, example) for example in (case.mixed, case.wrong, case.mixed))
    if first != again:
        raise ContractError(
            f"{case.name} is {first:g}, and then {again:g} for the same predictions; keep no state between calls of "
            "compute, such as totals, and seed random numbers"
        )


def _fit_changes_no_other_metric(case: MetricCase) -> None:
    fitted = case.fit()
    before = case.finite(fitted, case.mixed)
    # Their outputs are the smallest, for which thresholds differ.
    sizes = np.abs(case.wrong.predictions.outputs).reshape(len(case.rows), -1).mean(1)
    rows = sizes.argsort()[: len(case.rows) // 4 + 1]
    case.fit(case.wrong.select_rows("a quarter of wrong predictions", rows), _UNFITTED)
    after = case.finite(fitted, case.mixed)
    if before != after:
        raise ContractError(
            f"{case.name} is fitted for one network, and changes from {before:g} to {after:g} when fit is called for "
            "another; return a copy, such as dataclasses.replace(self, thresholds=...), and leave self as it is"
        )


def _ignores_the_order(case: MetricCase) -> None:
    order = np.random.default_rng(1).permutation(case.rows)
    reordered = case.mixed.select_rows("the same predictions in another order", order)
    fitted = case.fit()
    value, changed = case.finite(fitted, case.mixed), case.finite(fitted, reordered)
    if not _close(value, changed):
        raise case.error(
            reordered, f"is {changed:g} instead of {value:g}; it must not depend on the order of the samples"
        )


def _needs_no_ids(case: MetricCase) -> None:
    example = case.mixed.change("predictions without ids or groups", ids=None, groups=None)
    advice = "; those of a DataLoader have none; if the metric needs them, raise kdkit.DataError"
    try:
        case.finite(case.fit(), example, advice)
    except ContractError as error:
        if not isinstance(error.__cause__, KdkitError):
            raise


def _ignores_the_number_of_samples(case: MetricCase) -> None:
    if is_biased(case.metric):
        return
    fitted = case.fit()
    value = case.finite(fitted, case.mixed)
    doubled = case.mixed.select_rows("predictions with each sample twice", np.repeat(case.rows, 2))
    changed = case.finite(fitted, doubled)
    if not _close(value, changed, rtol=_DOUBLED_RTOL):
        raise case.error(
            doubled,
            f"is {changed:g} instead of {value:g}; resamples for intervals contain samples twice, so return a mean "
            "instead of a sum, and do not compare a sample with itself; for a value that depends on the number of "
            "samples, set is_biased = True",
        )


def _accepts_degenerate_samples(case: MetricCase) -> None:
    correct, first = case.correct, np.zeros_like(case.rows)
    labels, outputs = correct.predictions.labels, correct.predictions.outputs
    examples = []
    if case.task == "multilabel":
        is_positive = labels == 1
        without = is_positive & (np.arange(labels.shape[1]) == 0).reshape(-1, *(1 for _ in labels.shape[2:]))
        examples.append(correct.change("a class without positives", labels=np.where(without, 0, labels)))
        examples.append(correct.change("labels that are all 0", labels=np.where(is_positive, 0, labels)))
    elif case.task == "multiclass" and not case.position_dims:
        examples.append(correct.select_rows("a class without samples", (labels != labels[0]).nonzero()[0]))
    if case.position_dims:
        unlabelled = labels.copy()
        unlabelled[0] = -1
        examples.append(correct.change("a sample without a label at any position", labels=unlabelled))
    examples.append(correct.change("samples with equal labels", labels=labels[first]))
    examples.append(correct.change("samples with equal outputs", outputs=outputs[first]))
    examples.append(correct.select_rows("one sample", case.rows[:1]))
    fitted = case.fit()
    for example in examples:
        case.compute(fitted, example, _UNDEFINED)
        # after an epoch, the validation split is also the test split
        case.compute(case.fit(example, _UNFITTED), example, _UNDEFINED)


def _resamples_as_it_computes(case: MetricCase) -> None:
    fitted = case.fit()
    if not isinstance(fitted, Resampling):
        return
    test = case.predictions(case.mixed)
    only_first = np.zeros((len(case.rows), 1), dtype=np.float32)
    only_first[0] = len(case.rows)
    drawn = [] if is_biased(case.metric) else [next(iter(draw_counts(test, 2, seed=0))), only_first]
    counts = np.concatenate([np.ones_like(only_first), *drawn], axis=1)
    resampled: Any = case.call("resampled", lambda predictions: fitted.resampled(predictions, counts), case.mixed)
    classes, resamples = test.classes, counts.shape[1]
    shapes = [np.shape(part) for part in resampled] if isinstance(resampled, tuple) else describe(resampled)
    if shapes != [(resamples,), (len(classes), resamples)]:
        raise ContractError(
            f"resampled of {case.name} must return Resampled(values, by_class) of shapes (resamples,) and (classes, "
            f"resamples), here {(resamples,)} and {(len(classes), resamples)}; got {shapes}"
        )
    names = ("the value", *(f"the value of {name!r}" for name in classes))
    for column, times in enumerate(counts.T.astype(np.int64)):
        example = Example("drawn samples", drawn_samples(case.mixed.predictions, times))
        result = case.compute(fitted, example, _UNDEFINED)
        expected = [result.value, *(result.by_class.get(name, math.nan) for name in classes)]
        values = [resampled[0][column], *np.asarray(resampled[1])[:, column]]
        for name, fast, slow in zip(names, values, expected, strict=True):
            if not _close(fast, slow):
                raise ContractError(
                    f"resampled of {case.name} has {fast:g} as {name} of resample {column}, but compute {slow:g} for "
                    "the same samples; count each sample as often as `counts` says"
                )


def _leaves_out_unknown_labels(case: MetricCase) -> None:
    if not getattr(case.metric, "accepts_unknown", False) or case.task == "multiclass" or case.position_dims:
        return
    correct, wrong = case.mixed.predictions, case.wrong.predictions
    is_unknown = np.random.default_rng(2).random(correct.labels.shape) < 0.3
    is_unknown[0] = True
    labels = np.where(is_unknown, np.nan, correct.labels)
    example = case.mixed.change("predictions with unknown labels (NaN)", labels=labels)
    case.finite(case.fit(example), example)
    remedy = "leave out labels that are NaN"
    if correct.outputs.shape == labels.shape:
        others = example.change("", outputs=np.where(is_unknown, wrong.outputs[::-1], correct.outputs))
        _require_equal(case, example, others, f"if only outputs of unknown labels differ; {remedy}")
    known = example.select_rows("", case.rows[1:])
    _require_equal(case, example, known, f"without a sample whose labels are all unknown; {remedy}")


def _accepts_any_outputs(case: MetricCase) -> None:
    if not takes_any_outputs(case.metric) or case.position_dims:
        return

    def widened(example: Example) -> Example:
        outputs = np.concatenate([example.predictions.outputs] * 2, axis=1)
        return example.change(f"outputs {outputs.shape}", outputs=outputs)

    advice = "; it declares any_outputs = True"
    case.finite(case.fit(widened(case.correct), advice), widened(case.mixed), advice)


def _reduces_each_sample_alone(case: MetricCase) -> None:
    if not case.position_dims or not isinstance(case.metric, PositionReducing):
        return
    together = case.reduced(case.mixed)
    alone = torch.cat(
        [case.reduced(case.mixed.select_rows("one sample", case.rows[row : row + 1])) for row in range(4)]
    )
    if not torch.allclose(together[:4].double(), alone.double(), _RTOL, _ATOL, equal_nan=True):
        raise ContractError(
            f"reduce_positions of {case.name} keeps other numbers of a sample in a batch than of the sample alone; "
            "reduce the dimensions after the first one only, and divide in compute"
        )


def _ignores_positions_without_a_label(case: MetricCase) -> None:
    if not case.position_dims:
        return
    labels, outputs = case.mixed.predictions.labels, case.mixed.predictions.outputs
    is_unlabelled = labels < 0 if case.task == "multilabel" else (labels < 0)[:, None]
    others = case.mixed.change("", outputs=np.where(is_unlabelled, -0.5 * outputs, outputs))
    remedy = "leave out labels of -1, or pass ignores_unlabelled=False if these positions count"
    _require_equal(case, case.mixed, others, f"if only outputs at positions without a label differ; {remedy}")
    unlabelled = labels.copy()
    unlabelled[0] = -1
    example = case.mixed.change("predictions with a sample without a label", labels=unlabelled)
    _require_equal(case, example, example.select_rows("", case.rows[1:]), f"without this sample; {remedy}")


def _require_equal(case: MetricCase, example: Example, others: Example, difference: str) -> None:
    """Raise ContractError unless the metric is the same on two examples. difference: between them, and the remedy."""
    fitted = case.fit()
    value, changed = (case.finite(fitted, predictions) for predictions in (example, others))
    if not _close(value, changed):
        raise case.error(example, f"is {value:g}, and {changed:g} {difference}")


def _close(first: float, second: float, rtol: float = _RTOL) -> bool:
    return bool(np.isclose(first, second, rtol=rtol, atol=_ATOL, equal_nan=True))
