"""Compare the fast resamples of a metric with the metric of each resample."""

from typing import Any

import pytest

from kdkit import Metric, Predictions
from kdkit.metrics import BootstrapInterval


def without_resampled(metric: Metric) -> Any:
    """Return the metric without its fast `resampled`."""

    class Slow:
        name = metric.name

        def fit(self, validation: Predictions) -> Metric:
            return self

        def compute(self, test: Predictions) -> Any:
            return metric.compute(test)

    return Slow()


def assert_interval_is_that_of_resamples(metric: Metric, test: Predictions) -> None:
    """Assert that the fast interval of a metric is that of its value for each resample, and contains the value."""
    fast, slow = (
        BootstrapInterval(computed, resamples=20).compute(test) for computed in (metric, without_resampled(metric))
    )
    assert fast.interval == pytest.approx(slow.interval)
    assert fast.interval[0] < fast.value < fast.interval[1]
