"""check_metric, the contract check for plugin authors: for each check, a metric that fails it."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from kdkit import DataError, MetricResult, Predictions
from kdkit.errors import ContractError
from kdkit.metrics import Accuracy, BootstrapInterval, Resampled, TopKAccuracy
from kdkit.testing import check_metric


class Share:
    """The share of samples whose largest output is their class, a correct metric; the classes below add one fault."""

    name = "share"

    def fit(self, validation):
        return self

    def compute(self, test):
        return MetricResult(value=self.value(test))

    def value(self, test):
        return (test.outputs.argmax(1) == test.labels).mean()


@dataclass(frozen=True)
class AboveThreshold:
    """The share of labels that a threshold predicts: a correct metric with a threshold."""

    threshold: float = 0.0
    name = "above_threshold"

    def fit(self, validation):
        return replace(self, threshold=float(validation.outputs.mean()))

    def compute(self, test):
        return MetricResult(value=((test.outputs >= self.threshold) == test.labels).mean())


class ByGroup(Share):
    """The mean of the shares of the groups."""

    def value(self, test):
        if test.groups is None:
            raise DataError("share needs groups")
        return np.mean([super(ByGroup, self).value(test.rows(test.groups == group)) for group in set(test.groups)])


class OfCosts(Share):
    """The share of the samples that are right, weighted by a table of their costs by id, which fit reads too."""

    def __init__(self, costs):
        self.costs = costs

    def fit(self, validation):
        self.costs_of(validation)
        return self

    def value(self, test):
        if test.ids is None:
            raise DataError("costs need ids")
        return np.average(test.outputs.argmax(1) == test.labels, weights=self.costs_of(test))

    def costs_of(self, split):
        return [] if split.ids is None else [self.costs[id] for id in split.ids]


class Psnr(Share):
    """The peak signal-to-noise ratio, which is infinite for outputs that equal the labels."""

    def value(self, test):
        return -10 * np.log10(((test.outputs - test.labels) ** 2).mean())


WITH_GROUPS = Predictions(
    labels=np.arange(12) % 3, outputs=np.eye(3)[np.arange(12) % 3], classes=("a", "b", "c"), groups=np.arange(12) // 4
)
WITH_IDS = replace(WITH_GROUPS, groups=None, ids=5 * np.arange(12))


@pytest.mark.parametrize(
    ("metric", "options"),
    [
        (Share(), {}),
        (ByGroup(), {"predictions": WITH_GROUPS}),
        (OfCosts({5 * row: 1.0 + row % 2 for row in range(12)}), {"predictions": WITH_IDS}),
        (Psnr(), {"task": "regression"}),
        (AboveThreshold(), {"task": "multilabel"}),
        (BootstrapInterval(Accuracy()), {}),
        (TopKAccuracy(2), {"position_dims": 2}),
    ],
)
def test_a_correct_metric_passes_whatever_it_was_fitted_to(metric, options):
    check_metric(metric, **options)
    check_metric(metric, **options)


class WithErrors(Share):
    lower_is_better = lambda self: True  # noqa: E731


class Unnamed(Share):
    name = ""


class Raising(Share):
    def value(self, test):
        raise LookupError("nothing there")


class Undefined(Share):
    def value(self, test):
        return float("nan")


class ReturningANumber(Share):
    def compute(self, test):
        return self.value(test)


class WithoutAFit(Share):
    def fit(self, validation):
        self.validation = validation


class Renamed(Share):
    def fit(self, validation):
        fitted = Share()
        fitted.name = "fitted_share"
        return fitted


class InPlace(Share):
    def value(self, test):
        outputs = test.outputs
        outputs -= outputs.max(1, keepdims=True)
        return super().value(test)


class OfIndices(Share):
    def compute(self, test):
        return MetricResult(value=self.value(test), by_class={0: 1.0})


class ErrorRate(Share):
    def value(self, test):
        return 1 - super().value(test)


class Reversed(Share):
    lower_is_better = True


class Counting(Share):
    total = 0.0

    def value(self, test):
        self.total += super().value(test)
        return self.total


class KeepingThreshold(Share):
    """Its fit changes the metric itself."""

    def fit(self, validation):
        self.threshold = validation.outputs.std()
        return self

    def value(self, test):
        return (test.outputs >= self.threshold)[np.arange(len(test)), test.labels].mean()


class ByIds(Share):
    def value(self, test):
        return super().value(test) + (test.ids.max() < 0)


class OfNeighbours(Share):
    def value(self, test):
        return (test.outputs.argmax(1) == np.roll(test.labels, 1)).mean()


class Total(Share):
    def value(self, test):
        return len(test) * super().value(test)


class OfTwo(Share):
    def value(self, test):
        order = np.random.default_rng(0).permutation(2)  # fails for a single sample
        return super().value(test.rows(test.labels == test.labels[order[0]])) + 0 * test.labels[order[1]]


class OfTheFirstClass(Share):
    def value(self, test):
        rows = test.labels == test.labels.min()
        return super().value(test.rows(rows)) / (np.ptp(test.labels) > 0)


class NeedingTwoClasses(Share):
    def fit(self, validation):
        if len(np.unique(validation.labels)) < 2:
            raise ValueError("there is one class")
        return self


class Weighted(Share):
    """It ignores how often a sample is drawn."""

    def resampled(self, test, counts):
        return Resampled(
            np.full(counts.shape[1], self.value(test)), np.full((len(test.classes), counts.shape[1]), np.nan)
        )


class Transposed(Share):
    def resampled(self, test, counts):
        return Resampled(np.zeros(counts.shape[1]), np.zeros(counts.T.shape))


class FixedWidth(Share):
    any_outputs = True

    def value(self, test):
        return (test.outputs @ np.eye(10)).argmax(1).__eq__(test.labels).mean()


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            WithErrors,
            r"lower_is_better of metric 'share' must be True or False, an attribute or a property; got <bound",
        ),
        (Unnamed, "the name of a metric must be a string, such as 'accuracy'; got ''"),
        (
            Raising,
            r"compute of metric 'share' on correct .* raises LookupError: nothing there; .* pass task='multilabel'",
        ),
        (Undefined, "metric 'share' on correct predictions is nan, not a finite number"),
        (ReturningANumber, r"compute of metric 'share' must return MetricResult\(value=...\); got a float64"),
        (WithoutAFit, "fit of metric 'share' must return a metric with its thresholds, or self; got None"),
        (Renamed, "must return a metric with the same name; got 'fitted_share' instead of 'share'"),
        (InPlace, "compute of metric 'share' changes outputs in place, .*; compute on a copy"),
        (OfIndices, "has values by class for '0'; expected names of test.classes, such as 'class 0'"),
        (
            ErrorRate,
            r"is 0 for correct .*, and 0.8, which is better, .*; if lower values .* set its attribute lower_is_b",
        ),
        (Reversed, "is 1 for correct .*; if higher values are better, leave out lower_is_better"),
        (Counting, "is .*, and then .* for the same predictions; keep no state between calls"),
        (KeepingThreshold, r"changes from .* to .* when fit is called for another; return a copy, such as dataclasses"),
        (
            ByIds,
            "predictions without ids or groups raises AttributeError: .*; if the metric needs them, raise",
        ),
        (OfNeighbours, "on the same predictions in another order is .* instead of .*; it must not depend on the order"),
        (Total, r"with each sample twice is \d+ instead of \d+; .* return a mean instead of a sum"),
        (
            OfTwo,
            r"on one sample raises IndexError: .*; if it is undefined, return MetricResult\(value=float\('nan'\)\)",
        ),
        (OfTheFirstClass, "on samples with equal labels is inf, which is better than any other value"),
        (
            NeedingTwoClasses,
            "fit of metric 'share' on samples with equal labels raises ValueError: there is one class; if it cannot",
        ),
        (
            Weighted,
            r"resampled of metric 'share' has .* as the value of resample 1, but compute .* for the same samples",
        ),
        (Transposed, r"resampled of .* here \(4,\) and \(10, 4\); got \[\(4,\), \(4, 60\)\]"),
        (FixedWidth, r"on outputs \(60, 20\) raises ValueError: .*; it declares any_outputs = True"),
    ],
)
def test_a_faulty_metric_is_reported(metric, message):
    with pytest.raises(ContractError, match=message):
        check_metric(metric())


class Deviation:
    """The mean absolute error, which is NaN if a label is unknown."""

    name, lower_is_better, accepts_unknown = "deviation", True, True

    def fit(self, validation):
        return self

    def compute(self, test):
        return MetricResult(value=np.abs(test.outputs - test.labels).mean())


class DeviationFromZero(Deviation):
    """It takes unknown labels for 0."""

    def compute(self, test):
        return MetricResult(value=np.abs(test.outputs - np.nan_to_num(test.labels)).mean())


class ShareOfLabels(Share):
    """The share of labels that the signs of the outputs are, so unknown labels count as wrong."""

    accepts_unknown = True

    def value(self, test):
        return ((test.outputs > 0) == test.labels).mean()


def test_a_metric_for_which_unknown_labels_are_wrong_is_reported():
    with pytest.raises(ContractError, match="without a sample whose labels are all unknown; leave out labels that are"):
        check_metric(ShareOfLabels(), task="multilabel")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (Deviation, r"on predictions with unknown labels \(NaN\) is nan, not a finite number"),
        (DeviationFromZero, "if only outputs of unknown labels differ; leave out labels that are NaN"),
    ],
)
@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_a_metric_that_counts_unknown_labels_is_reported(metric, message, task):
    with pytest.raises(ContractError, match=message):
        check_metric(metric(), task=task)


class Entropy:
    """The mean entropy of the outputs at positions with a label, a correct metric."""

    name = "entropy"
    accepts_positions = True

    def reduce_positions(self, outputs, labels):
        logs, has_label = outputs.log_softmax(1), labels >= 0
        entropies = -(logs.exp() * logs).sum(1)
        return torch.stack([(entropies * has_label).flatten(1).sum(1), has_label.flatten(1).sum(1)], 1)

    def fit(self, validation):
        return self

    def compute(self, test):
        total, count = test.reduced[self.name].sum(0)
        return MetricResult(value=total / count)


class OfAllPositions(Entropy):
    def reduce_positions(self, outputs, labels):
        return super().reduce_positions(outputs, torch.zeros_like(labels))


class OfTheBatch(Entropy):
    def reduce_positions(self, outputs, labels):
        return super().reduce_positions(outputs, labels) / len(outputs)


class OneNumber(Entropy):
    def reduce_positions(self, outputs, labels):
        return super().reduce_positions(outputs, labels).sum()


class MaskingInPlace(Entropy):
    def reduce_positions(self, outputs, labels):
        return super().reduce_positions(outputs, labels.clamp_(min=0))


class PixelAccuracy(Share):
    """The share of all positions whose decision is their label, so positions without a label count as wrong."""

    accepts_positions = True

    def value(self, test):
        return (test.outputs == test.labels).mean()


@pytest.mark.parametrize("position_dims", [1, 2, 3])
def test_a_metric_of_positions_passes(position_dims):
    check_metric(Entropy(), position_dims=position_dims)
    check_metric(OfAllPositions(), position_dims=position_dims, ignores_unlabelled=False)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (Share, "metric 'share' does not accept labels per position; set its attribute accepts_positions = True"),
        (
            OfAllPositions,
            "if only outputs at positions without a label differ; leave out labels of -1, or pass ignores",
        ),
        (PixelAccuracy, "with a sample without a label is .*, and .* without this sample; leave out labels of -1"),
        (OfTheBatch, "other numbers of a sample in a batch than of the sample alone"),
        (OneNumber, r"must return a tensor with a row for each of the 60 samples; got a tensor \(\)"),
        (MaskingInPlace, "reduce_positions of metric 'entropy' changes outputs or labels in place"),
    ],
)
def test_a_faulty_metric_of_positions_is_reported(metric, message):
    with pytest.raises(ContractError, match=message):
        check_metric(metric(), position_dims=1)


def test_predictions_of_other_classes_and_shapes_are_checked():
    class Distance(Deviation):
        accepts_unknown = False

        def compute(self, test):
            return MetricResult(value=np.linalg.norm(test.outputs - test.labels, axis=(1, 2)).mean())

    points = np.random.default_rng(0).normal(size=(12, 5, 2))
    predictions = Predictions(labels=points, outputs=points, classes=("x", "y"))
    check_metric(Distance(), task="regression", predictions=predictions)
    with pytest.raises(
        ContractError, match=r"these are labels \(60, 2\) .* for other classes, shapes, ids or groups, pass"
    ):
        check_metric(Distance(), task="regression")


COLUMN = replace(WITH_GROUPS, outputs=np.arange(12.0))
ALIKE = replace(WITH_GROUPS, labels=np.zeros(12, dtype=int))
FEW = Predictions(labels=np.arange(4), outputs=np.eye(4), classes=("a", "b", "c", "d"))


@pytest.mark.parametrize(
    ("metric", "options", "message"),
    [
        (
            Share,
            {},
            "check_metric takes a metric with a name, fit and compute, .*; got the class Share; did you forget",
        ),
        (len, {}, "check_metric takes a metric"),
        (Share(), {"task": "classes"}, "task must be one of multiclass, multilabel, regression; got 'classes'"),
        (Share(), {"position_dims": 4}, "position_dims must be 0, 1, 2 or 3; got 4"),
        (Share(), {"task": "regression", "position_dims": 1}, "position_dims must be 0, because numbers"),
        (Share(), {"predictions": FEW}, r"kdkit.Predictions of at least 8 samples, .*; got Predictions\(4 samples"),
        (Share(), {"predictions": np.eye(4)}, "predictions must be kdkit.Predictions"),
        (Share(), {"predictions": COLUMN}, r"and outputs \(samples, columns\); got Predictions\(12 samples"),
        (Share(), {"predictions": ALIKE}, "must have samples with different labels; got 12 samples with equal ones"),
    ],
)
def test_wrong_arguments_are_reported(metric, options, message):
    with pytest.raises(ContractError, match=message):
        check_metric(metric, **options)
