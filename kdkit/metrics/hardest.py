"""Which samples a network got most wrong."""

import numpy as np
from numpy.typing import NDArray

from kdkit.metrics.base import Floats, Predictions, log_softmax


def hardest_samples(predictions: Predictions, count: int) -> NDArray[np.int64]:
    """Return the rows of the samples with the largest losses, the worst first; none for labels per position or numbers.

    The loss is the cross-entropy of the softmax, or for labels by class the mean one of the sigmoids over known labels.
    """
    losses = _losses(predictions)
    return np.empty(0, np.int64) if losses is None else np.argsort(-losses, kind="stable")[:count]


def _losses(predictions: Predictions) -> Floats | None:
    labels, outputs = predictions.labels, predictions.outputs.astype(np.float64)
    if predictions.per_position or outputs.ndim != 2:
        return None
    if labels.ndim == 1 and labels.dtype.kind in "iu":
        logs: Floats = log_softmax(outputs)[np.arange(len(labels)), labels]
        return -logs
    truth = labels.astype(np.float64)
    has_label = ~np.isnan(truth)
    if truth.shape != outputs.shape or not np.isin(truth[has_label], (0, 1)).all():
        return None
    # log(1 + exp(x)) - y x, without overflow
    losses = np.where(has_label, np.logaddexp(0, outputs) - np.nan_to_num(truth) * outputs, 0)
    means: Floats = losses.sum(1) / np.maximum(has_label.sum(1), 1)
    return means
