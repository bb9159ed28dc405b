"""Find the samples with the largest losses."""

import numpy as np
from numpy.typing import NDArray

from kdkit.metrics.base import Predictions
from kdkit.metrics.likelihood import label_losses


def hardest_samples(predictions: Predictions, count: int) -> NDArray[np.int64]:
    """Return the rows of the samples with the largest losses, the largest first.

    The loss is the cross-entropy of the softmax, or, for labels by class, the mean binary cross-entropy of the sigmoids
    over known labels. No rows are returned for labels per position or numbers.
    """
    labels, outputs, none = predictions.labels, predictions.outputs, np.empty(0, np.int64)
    if predictions.per_position or outputs.ndim != 2:
        return none
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        truth = labels.astype(np.float64)
        if truth.shape != outputs.shape or not np.isin(truth[~np.isnan(truth)], (0, 1)).all():
            return none
    losses, is_known = label_losses(predictions)
    means = losses.sum(1) / np.maximum(is_known.sum(1), 1)
    return np.argsort(-means, kind="stable")[:count]
