"""Scores of numbers against numbers."""

from dataclasses import dataclass
from typing import Self

from kdkit.metrics.base import MetricResult, Predictions


@dataclass(frozen=True, slots=True)
class R2:
    """Coefficient of determination, mean over the columns: regression, at most 1."""

    @property
    def name(self) -> str:
        """The name in tables."""
        return "r2"

    def fit(self, validation: Predictions) -> Self:
        """There is nothing to choose."""
        return self

    def compute(self, test: Predictions) -> MetricResult:
        """Return the coefficient."""
        from sklearn.metrics import r2_score  # scikit-learn takes a second to import

        return MetricResult(value=float(r2_score(test.labels, test.outputs)))
