"""Find the problem of a metric, by computing it for a few predictions."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from torch import Tensor

from kdkit.errors import KdkitError
from kdkit.metrics.base import Metric, Predictions
from kdkit.metrics.bootstrap import without_interval

_ROWS = 8


def metric_problem(metric: Metric, predict: Callable[[], Predictions]) -> str | None:
    """Return the reason why a metric cannot be computed for the predictions that a function returns, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # these predictions may be degenerate, real ones need not be
            predictions = predict()
            metric.fit(predictions).compute(predictions)
    except Exception as error:  # a user-defined metric may raise anything
        return str(error) if isinstance(error, KdkitError) else f"{type(error).__name__}: {error}"
    return None


def number_metric_problems(
    metrics: Sequence[Metric], outputs: Mapping[str, Tensor], labels: Tensor, classes: tuple[str, ...]
) -> Iterator[str]:
    """Yield the problems of metrics of numbers, whose labels and outputs may have any shape, such as packed ones.

    outputs: of each network that is trained, by its name, in eval mode. labels: of the same samples.
    """
    for name, output in outputs.items():
        arrays = labels.cpu().numpy(), output.detach().float().cpu().numpy()
        first = partial(Predictions, labels=arrays[0], outputs=arrays[1], classes=classes)
        for metric in map(without_interval, metrics):
            reason = metric_problem(metric, first)
            # The labels of a few samples may be all alike, for which a metric of user code may raise.
            if reason is not None and metric_problem(metric, partial(_random_like, first())) is not None:
                yield f"metric {metric.name!r} does not fit this data (regression) and net {name!r}: {reason}"


def _random_like(predictions: Predictions) -> Predictions:
    """Return random predictions of the same shapes."""
    random = np.random.default_rng(0)
    labels, outputs = (
        random.standard_normal((_ROWS, *side.shape[1:])) for side in (predictions.labels, predictions.outputs)
    )
    return Predictions(labels=labels, outputs=outputs, classes=predictions.classes)
