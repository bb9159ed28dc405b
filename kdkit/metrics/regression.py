"""Metrics of predicted numbers against true numbers."""

from dataclasses import dataclass
from typing import Self

from kdkit.metrics.base import MetricResult, Predictions


@dataclass(frozen=True, slots=True)
class R2:
    """Coefficient of determination, averaged over the output columns: regression, at most 1."""

    @property
    def name(self) -> str:
        """The name in tables."""
        return "r2"

    def fit(self, validation: Predictions) -> Self:
        """Return self, which has no thresholds."""
        return self

    def compute(self, test: Predictions) -> MetricResult:
        """Return the coefficient."""
        from sklearn.metrics import r2_score  # late: scikit-learn takes a second to import

        return MetricResult(value=float(r2_score(test.labels, test.outputs)))
