"""Metrics of predicted numbers against true numbers."""

from dataclasses import dataclass

from kdkit.metrics.base import MetricResult, Predictions, WithoutThresholds


@dataclass(frozen=True, slots=True)
class R2(WithoutThresholds):
    """Coefficient of determination, averaged over the output columns: regression, at most 1."""

    @property
    def name(self) -> str:
        """The name in tables."""
        return "r2"

    def compute(self, test: Predictions) -> MetricResult:
        """Return the coefficient."""
        from sklearn.metrics import r2_score  # late: scikit-learn takes a second to import

        return MetricResult(value=float(r2_score(test.labels, test.outputs)))
