"""Analyse the stored predictions of nets: agreement, calibration, and errors by class."""

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdkit.metrics.base import (
    Bools,
    Floats,
    Metric,
    MetricResult,
    Predictions,
    log_softmax,
    row_blocks,
    true_classes,
)
from kdkit.metrics.calibration import CalibrationError, probabilities_of
from kdkit.metrics.classification import MacroF1
from kdkit.metrics.detection import MeanAveragePrecision
from kdkit.metrics.paired import SplitPredictions
from kdkit.metrics.ranks import MRR, NDCG, TopKAccuracy
from kdkit.metrics.resampling import Resampling
from kdkit.metrics.thresholds import BestF1, YoudenJ
from kdkit.plugins.manager import registry

Kind = Literal["multiclass", "multilabel", "regression", "positions"]

BINS = 10  # of a reliability diagram
_BLOCK = 1 << 22  # how many outputs are compared at a time: 32 MB of float64
# Metrics whose names have an option; the others are in the registry.
_WITH_OPTION: tuple[Metric, ...] = (
    MacroF1(thresholds_by=YoudenJ()),
    CalibrationError(bins="equal_mass"),
    *(MeanAveragePrecision((overlap,)) for overlap in (0.5, 0.75)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How similar the decisions of two nets are on the same samples.

    equal: the share of equal decisions. both, first_only, second_only, neither: the shares of decisions that these nets
    get right. divergence: the mean Kullback-Leibler divergence of the second net from the first one, in nats.
    correlation: of their outputs, centered over the classes of each sample for multiclass. Both are None if only
    decisions are stored. For regression, only the correlation is defined.
    """

    equal: float | None = None
    both: float | None = None
    first_only: float | None = None
    second_only: float | None = None
    neither: float | None = None
    divergence: float | None = None
    correlation: float | None = None


def kind_of(predictions: Predictions) -> Kind:
    """Return the kind of labels that predictions have."""
    labels = predictions.labels
    if predictions.per_position:
        return "positions"
    if labels.ndim == 1 and labels.dtype.kind in "biu" and predictions.outputs.ndim == 2:
        return "multiclass"
    is_by_class = labels.ndim == 2 and labels.shape == predictions.outputs.shape
    is_binary = labels.dtype.kind in "bu" or bool(np.isin(labels[~np.isnan(labels.astype(np.float64))], (0, 1)).all())
    return "multilabel" if is_by_class and is_binary else "regression"


def same_metric(name: str, stored: MetricResult, run: SplitPredictions) -> Metric | None:
    """Return a metric of kdkit that reproduces a stored value, and so can give its interval; None if there is none.

    The options of a metric are not stored, and user-defined metrics are not available.
    """
    metrics, factories = [*_WITH_OPTION], registry("metrics")
    if k := re.fullmatch(r"\w+?_([1-9]\d{,5})(_accuracy)?", name):
        metrics += [metric(int(k[1])) for metric in (MRR, NDCG, TopKAccuracy)]
    if name in factories:
        with suppress(Exception):  # a metric of a plugin may need options, or raise anything
            metrics.append(factories[name]())
    for metric in metrics:
        if metric.name != name or not isinstance(metric, Resampling):
            continue
        try:
            value = metric.fit(run.validation).compute(run.test).value
        except Exception:  # a metric of a plugin may raise anything for other data
            continue
        # An option that the recipe changed, such as the number of bins, gives another value.
        if np.isclose(value, stored.value, rtol=1e-9, atol=1e-12):
            return metric
    return None


def _decisions_of(run: SplitPredictions) -> NDArray[Any]:
    """Return the decisions on the test split, in the shape of its labels. Thresholds have the best F1 by class."""
    kind = kind_of(run.test)
    if kind == "positions":
        return run.test.outputs
    if kind == "multiclass":
        largest: NDArray[Any] = run.test.outputs.argmax(1)
        return largest
    decisions: Bools = run.test.outputs >= np.array(BestF1().choose(run.validation))
    return decisions


def agreement(first: SplitPredictions, second: SplitPredictions) -> Agreement | None:
    """Return the agreement of two nets; None if they were not tested on the same samples and classes."""
    first_test, second_test = first.test, second.test
    labels = first_test.labels
    may_be_unknown = labels.dtype.kind == "f"  # unknown labels are NaN, which other dtypes do not have
    have_same_labels = np.array_equal(labels, second_test.labels, equal_nan=may_be_unknown)
    if first_test.classes != second_test.classes or not have_same_labels:
        return None
    kind = kind_of(first_test)
    if kind == "regression":
        return Agreement(correlation=_correlation(first_test.outputs, second_test.outputs))
    # Labels are (samples, classes) or (samples, *positions): shares count every label, not every sample.
    is_known = labels >= 0 if kind == "positions" else ~np.isnan(labels.astype(np.float64))
    first_decided, second_decided = _decisions_of(first)[is_known], _decisions_of(second)[is_known]
    first_right, second_right = first_decided == labels[is_known], second_decided == labels[is_known]
    outputs = first_test.outputs, second_test.outputs
    has_outputs = kind != "positions"
    return Agreement(
        equal=_share(first_decided == second_decided),
        both=_share(first_right & second_right),
        first_only=_share(first_right & ~second_right),
        second_only=_share(~first_right & second_right),
        neither=_share(~first_right & ~second_right),
        divergence=_divergence(*outputs, kind) if has_outputs else None,
        correlation=_correlation(*outputs, centred=kind == "multiclass") if has_outputs else None,
    )


def reliability(test: Predictions) -> tuple[float, list[tuple[float, float, int]]] | None:
    """Return the calibration error, and for each bin the mean probability, the share that was right, and its size.

    Multiclass: for the largest probability. Multilabel: for all classes together. None if there are no probabilities.
    """
    kind = kind_of(test)
    if kind not in ("multiclass", "multilabel"):
        return None
    probabilities, is_right = probabilities_of(test), true_classes(test)
    if kind == "multiclass":
        probabilities, is_right = probabilities.max(1), probabilities.argmax(1) == test.labels
    else:
        is_known = ~np.isnan(test.labels.astype(np.float64))
        probabilities, is_right = probabilities[is_known], is_right[is_known]
    # a probability of exactly 1 belongs to the last bin
    bins = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    # (bins,) each: the sums of the probabilities, and the numbers of those that were right
    sums = [np.bincount(bins, weights=values, minlength=BINS) for values in (probabilities, is_right)]
    rows = [
        (float(sums[0][index] / count), float(sums[1][index] / count), int(count)) if count else (0.0, 0.0, 0)
        for index, count in enumerate(counts)
    ]
    return CalibrationError().compute(test).value, rows


def confusion(run: SplitPredictions) -> Any:
    """Return counts by class as a csr_array (classes, classes), or None for regression.

    One class per sample or position: how often a row's class was predicted as a column's. Several labels per sample:
    how often a column's class was predicted wrongly when a row's class was missed; on the diagonal, all misses.
    """
    from scipy.sparse import csr_array, diags_array  # late: `import kdkit` must not import scipy

    test = run.test
    kind, count = kind_of(test), len(test.classes)
    if kind == "regression":
        return None
    decided = _decisions_of(run)
    if kind == "multilabel" or (kind == "positions" and decided.dtype.kind == "b"):
        axes = tuple(range(2, test.labels.ndim))  # axes of positions: classes co-occur in a sample
        truth = np.nan_to_num(test.labels.astype(np.float64)) > 0
        is_known = test.labels >= 0  # also False for NaN
        missed = (truth & ~decided & is_known).any(axes) if axes else truth & ~decided & is_known
        wrong = (~truth & decided & is_known).any(axes) if axes else ~truth & decided & is_known
        # (classes, samples) @ (samples, classes): the samples on which a class was missed and another one predicted
        together = csr_array(missed.T.astype(np.float64)) @ csr_array(wrong.astype(np.float64))
        return (together + diags_array(missed.sum(0) - together.diagonal())).tocsr()
    is_known = test.labels >= 0
    pairs = test.labels[is_known].astype(np.int64), decided[is_known].astype(np.int64)
    # Sparse, because a vocabulary has billions of cells. It sums the ones of each cell.
    return csr_array((np.ones(len(pairs[0])), pairs), shape=(count, count))


def _share(mask: Bools) -> float:
    return float(mask.mean()) if mask.size else float("nan")


def _correlation(first: NDArray[Any], second: NDArray[Any], *, centred: bool = False) -> float | None:
    if first.shape != second.shape or first.size < 2:
        return None
    blocks = [*row_blocks(first.shape, _BLOCK)]
    count, means = 0, np.zeros(2)
    for rows in blocks:
        pair = _unmasked(first[rows], second[rows], centred=centred)
        count += len(pair[0])
        means += [side.sum() for side in pair]
    means /= max(1, count)
    products = np.zeros((2, 2))
    for rows in blocks:
        pair = _unmasked(first[rows], second[rows], centred=centred) - means[:, None]
        products += pair @ pair.T
    scale = float(np.sqrt(products[0, 0] * products[1, 1]))
    return float(products[0, 1]) / scale if scale > 0 else None


def _unmasked(first: NDArray[Any], second: NDArray[Any], *, centred: bool) -> Floats:
    """Return the outputs of both nets that neither masks, (2, outputs), centred over the classes of each sample."""
    # masked classes have outputs of about -1e38; their squares do not overflow float64, but dominate all others
    masked = ~((np.abs(first) < 1e30) & (np.abs(second) < 1e30))
    pair = [np.ma.masked_array(side.astype(np.float64), masked) for side in (first, second)]
    if centred:  # adding a number to all classes of a sample does not change a softmax
        pair = [side - side.mean(1, keepdims=True) for side in pair]
    return np.stack([side.compressed() for side in pair])


def _divergence(first: NDArray[Any], second: NDArray[Any], kind: Kind) -> float:
    """Return the mean divergence of the second outputs from the first ones, over samples and classes of multilabel."""
    total = 0.0
    for rows in row_blocks(first.shape, _BLOCK):
        sides = first[rows], second[rows]
        if kind == "multiclass":
            pairs = [[log_softmax(side) for side in sides]]
        else:  # a class and its absence: log(sigmoid(x)) = -log(1 + exp(-x)), which does not overflow in logaddexp
            pairs = [[-np.logaddexp(0, sign * side.astype(np.float64)) for side in sides] for sign in (-1, 1)]
        total += sum(float((np.exp(left) * (left - right)).sum()) for left, right in pairs)
    return total / (len(first) if kind == "multiclass" else first.size)
