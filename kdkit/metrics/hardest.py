"""Which samples a network got most wrong."""

import numpy as np
from numpy.typing import NDArray

from kdkit.metrics.base import Floats, Predictions
from kdkit.metrics.likelihood import label_losses


def hardest_samples(predictions: Predictions, count: int) -> NDArray[np.int64]:
    """Return the rows of the samples with the largest losses, the worst first; none for labels per position or numbers.

    The loss is the cross-entropy of the softmax, or for labels by class the mean one of the sigmoids over known labels.
    """
    losses = _losses(predictions)
    return np.empty(0, np.int64) if losses is None else np.argsort(-losses, kind="stable")[:count]


def _losses(predictions: Predictions) -> Floats | None:
    labels, outputs = predictions.labels, predictions.outputs
    if predictions.per_position or outputs.ndim != 2:
        return None
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        truth = labels.astype(np.float64)
        if truth.shape != outputs.shape or not np.isin(truth[~np.isnan(truth)], (0, 1)).all():
            return None
    losses, is_known = label_losses(predictions)
    means: Floats = losses.sum(1) / np.maximum(is_known.sum(1), 1)
    return means
