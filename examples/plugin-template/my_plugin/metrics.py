"""A metric, which is computed from the predictions of a network for a split."""

from dataclasses import dataclass

import numpy as np
from kdkit import DataError, MetricResult, Predictions


@dataclass(frozen=True)
class BalancedAccuracy:
    """The mean of the recalls of all classes, in [0, 1]: a rare class counts as much as a frequent one.

    For one class per sample. Classes without a sample are left out. Raises DataError for other labels.
    """

    name = "balanced_accuracy"

    def fit(self, validation: Predictions) -> "BalancedAccuracy":
        """Return self. A metric with thresholds returns a copy with those of the validation split."""
        return self

    def compute(self, test: Predictions) -> MetricResult:
        """Return the metric, and the recall of each class."""
        if test.labels.ndim != 1:
            raise DataError(f"balanced accuracy takes one class per sample; got labels {test.labels.shape}")
        is_right = test.outputs.argmax(1) == test.labels
        samples = {name: test.labels == index for index, name in enumerate(test.classes)}
        recalls = {name: is_right[rows].mean() for name, rows in samples.items() if rows.any()}
        return MetricResult(value=np.mean([*recalls.values()]), by_class=recalls)
