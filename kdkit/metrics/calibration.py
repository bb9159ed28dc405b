"""Metrics of probabilities: whether predictions with a probability of 80 % are right in 80 of 100 cases."""

from collections.abc import Container
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from kdkit.metrics.base import (
    Bools,
    Floats,
    Predictions,
    finite_outputs,
    known_rows,
    mean_over_classes,
    note_on_missing,
    ratio,
    true_classes,
    undefined_by_class,
    unknown_labels,
)
from kdkit.metrics.resampling import CountedMetric, Counts, Resampled, count_blocks
from kdkit.utils.validation import validate_choice, validate_count

Bins = Literal["equal_width", "equal_mass"]


class _ProbabilityMetric(CountedMetric):
    """Base class of metrics that classes without positives have too."""

    __slots__ = ()
    accepts_unknown: ClassVar[bool] = True
    lower_is_better: ClassVar[bool] = True

    def _note(self, test: Predictions, defined: Container[str]) -> str:
        """Return a note that names the classes without positives."""
        positives = true_classes(test).sum(0).tolist()
        return note_on_missing(test, [name for name, count in zip(test.classes, positives, strict=True) if count])


@dataclass(frozen=True, slots=True)
class CalibrationError(_ProbabilityMetric):
    """Expected calibration error, in [0, 1]; lower is better.

    The mean of |mean probability - share of positives| over bins, weighted by the number of samples in each bin.
    Multilabel: for the sigmoid of each class, averaged over classes, including classes without positives, whose
    probabilities may also be wrong. Multiclass: for the largest softmax probability and whether its class is right (Guo
    et al. 2017, equation 3).
    bins: "equal_width", or "equal_mass", which rare classes need (Nixon et al. 2019). Equal probabilities share a bin.
    count: the number of bins. Resamples use the bins of the split.

    The error on a split is larger than the error of the population, because the shares in small bins vary by chance.
    Even a calibrated network has an error above 0, which is larger if its probabilities are near one half. An interval
    therefore describes the error on other splits of the same size, and differences between networks have no interval;
    compare networks by `Brier`.
    """

    bins: Bins = "equal_width"
    count: int = 15
    is_biased: ClassVar[bool] = True

    def __post_init__(self) -> None:
        validate_choice("bins", self.bins, Bins)
        validate_count("count, the number of bins,", self.count)

    @property
    def name(self) -> str:
        """The name in tables."""
        return "calibration_error" if self.bins == "equal_width" else f"calibration_error_{self.bins}"

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return the error for each resample."""
        probabilities, truth = probabilities_of(test), true_classes(test)
        if test.labels.ndim == 1:
            # A single column: the confidence of the predicted class, and whether it is right.
            is_right = test.outputs.argmax(1) == test.labels
            probabilities, truth = probabilities.max(1, keepdims=True), is_right[:, None]
        rows_by_column = known_rows(test)[: truth.shape[1]]
        excesses = [
            self._excess_by_bin(probabilities[:, column], truth[:, column], rows)
            for column, rows in enumerate(rows_by_column)
        ]
        # The share of a bin times its gap is |sum of its excesses| / number of samples.
        blocks = []
        for block in (block.astype(np.float64) for block in count_blocks(counts)):
            total = block.sum(0)  # over all samples; for a class with unknown labels, over the known ones
            totals = [total if len(rows) == len(block) else block[rows].sum(0) for rows in rows_by_column]
            sums = [np.abs(excess @ block).sum(0) for excess in excesses]
            blocks.append(np.stack([ratio(*pair) for pair in zip(sums, totals, strict=True)]))
        errors = np.concatenate(blocks, axis=1)  # (columns, resamples)
        if test.labels.ndim == 1:
            return Resampled(errors[0], undefined_by_class(test, errors.shape[1]))
        return Resampled(mean_over_classes(errors), errors)

    def _excess_by_bin(self, probabilities: Floats, truth: Bools, rows: NDArray[np.int64]) -> Any:
        """Return a sparse (bins, samples) matrix of probability - truth for the samples in these rows."""
        from scipy.sparse import csr_matrix  # late: scipy.sparse takes a while to import

        size, probabilities, truth = len(truth), probabilities[rows], truth[rows]
        edges = np.linspace(0, 1, self.count + 1)
        if self.bins == "equal_mass" and len(rows):
            edges = np.quantile(probabilities, edges)
        # Only the inner edges, so that 0 and 1 are in the first and the last bin.
        bins = np.searchsorted(edges[1:-1], probabilities, side="right")
        return csr_matrix((probabilities - truth, (bins, rows)), shape=(self.count, size))


@dataclass(frozen=True, slots=True)
class Brier(_ProbabilityMetric):
    """Brier score, the mean squared error of probabilities; lower is better (Brier 1950).

    Multilabel: for the sigmoid of each class, averaged over classes, in [0, 1]. Multiclass: for the softmax, summed
    over classes, in [0, 2].
    """

    name = "brier"

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return the score for each resample."""
        squares = (probabilities_of(test) - true_classes(test)) ** 2
        is_unknown = unknown_labels(test)
        if is_unknown is not None:
            by_class = ratio(np.where(is_unknown, 0.0, squares).T @ counts, (~is_unknown).astype(np.float64).T @ counts)
            return Resampled(mean_over_classes(by_class), by_class)
        by_class = ratio(squares.T @ counts, counts.sum(0, dtype=np.float64))  # (classes, resamples)
        return Resampled(by_class.sum(0) if test.labels.ndim == 1 else by_class.mean(0), by_class)


def probabilities_of(test: Predictions) -> Floats:
    """Return the softmax for multiclass, and the sigmoid for multilabel, (samples, classes), of finite outputs."""
    logits = finite_outputs(test).astype(np.float64)
    probabilities: Floats
    if test.labels.ndim == 1:
        exponentials = np.exp(logits - logits.max(1, keepdims=True))  # exp of large logits would overflow
        probabilities = exponentials / exponentials.sum(1, keepdims=True)
    else:
        probabilities = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))  # exp(709) is the largest float64
    return probabilities
