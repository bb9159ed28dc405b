"""Metrics of the probability of the labels: cross-entropy, which is the loss on the labels, and perplexity."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kdkit.errors import DataError
from kdkit.metrics.base import (
    Floats,
    Predictions,
    class_indices,
    finite_outputs,
    log_softmax,
    ratio,
    reduced_positions,
    row_blocks,
    true_classes,
    undefined_by_class,
    unknown_labels,
)
from kdkit.metrics.resampling import CountedMetric, Counts, Resampled

_BLOCK = 1 << 20  # how many outputs are processed at a time, in float64


@dataclass(frozen=True, slots=True)
class CrossEntropy(CountedMetric):
    """The mean cross-entropy of the labels, in nats: the loss on a validation or test split. Lower is better.

    Multiclass: -log of the softmax probability of the class, averaged over samples, or, for labels per position, over
    the labeled positions of all samples. Multilabel: the binary cross-entropy of the sigmoids, averaged over all known
    labels.
    """

    name = "cross_entropy"
    accepts_unknown: ClassVar[bool] = True
    accepts_positions: ClassVar[bool] = True
    lower_is_better: ClassVar[bool] = True

    def reduce_positions(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the sums over the positions of each sample, see `position_losses`."""
        return position_losses(outputs, labels)

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return the cross-entropy for each resample."""
        if test.per_position:
            sums, numbers = np.moveaxis(reduced_positions(self, test).astype(np.float64), -1, 0)
        else:
            sums, numbers = label_losses(test)
        totals, labels = sums.T @ counts, numbers.T @ counts  # (columns, resamples)
        is_by_class = len(totals) == len(test.classes)
        by_class = ratio(totals, labels) if is_by_class else undefined_by_class(test, counts.shape[1])
        return Resampled(ratio(totals.sum(0), labels.sum(0)), by_class)


@dataclass(frozen=True, slots=True)
class Perplexity(CountedMetric):
    """The exponential of the mean cross-entropy of tokens: multiclass, at least 1. Lower is better.

    The mean is over all labeled tokens of all samples, so long texts count more than short ones. Perplexities of
    networks with different vocabularies cannot be compared, because their tokens differ.
    """

    name = "perplexity"
    accepts_positions: ClassVar[bool] = True
    lower_is_better: ClassVar[bool] = True

    def reduce_positions(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the sums over the positions of each sample, see `position_losses`."""
        return position_losses(outputs, labels)

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return the perplexity for each resample."""
        if test.labels.ndim > 1 and (not test.per_position or test.outputs.dtype == np.bool_):
            raise DataError("Perplexity takes one class per token or sample; use CrossEntropy for several labels")
        if test.per_position:
            sums, tokens = reduced_positions(self, test)[:, 0].astype(np.float64).T @ counts
        else:
            sums, tokens = (part.T[0] @ counts for part in label_losses(test))
        with np.errstate(over="ignore"):  # infinite if the probability of a label is almost 0
            perplexities = np.exp(ratio(sums, tokens))
        return Resampled(perplexities, undefined_by_class(test, counts.shape[1]))


def label_losses(predictions: Predictions) -> tuple[Floats, Floats]:
    """Return the cross-entropy of each label and whether it is known, (samples, 1); (samples, classes) if multilabel.

    Raises DataError for labels per position, or if outputs are not finite.
    """
    outputs = finite_outputs(predictions)
    if predictions.labels.ndim == 1:
        labels, blocks = class_indices(predictions)[:, None], row_blocks(outputs.shape, _BLOCK)
        losses = -np.concatenate([np.take_along_axis(log_softmax(outputs[rows]), labels[rows], 1) for rows in blocks])
        return losses, np.ones_like(losses)
    truth = true_classes(predictions)
    is_unknown = unknown_labels(predictions)
    is_known = np.ones(truth.shape) if is_unknown is None else (~is_unknown).astype(np.float64)
    outputs = outputs.astype(np.float64)
    # log(1 + exp(x)) - y x, without overflow
    return (np.logaddexp(0, outputs) - truth * outputs) * is_known, is_known


def hardest_samples(predictions: Predictions, count: int) -> NDArray[np.int64]:
    """Return the rows of the samples with the largest losses, the largest first.

    The loss is the cross-entropy of the softmax, or, for labels by class, the mean binary cross-entropy of the sigmoids
    over known labels. No rows are returned for labels per position or numbers.
    """
    labels, outputs, none = predictions.labels, predictions.outputs, np.empty(0, np.int64)
    if predictions.per_position or outputs.ndim != 2:
        return none
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        if labels.shape != outputs.shape:
            return none
        blocks = (labels[rows].astype(np.float64) for rows in row_blocks(labels.shape, _BLOCK))
        if not all(((block == 0) | (block == 1) | np.isnan(block)).all() for block in blocks):
            return none
    parts = (label_losses(predictions.rows(rows)) for rows in row_blocks(outputs.shape, _BLOCK))
    means = np.concatenate([losses.sum(1) / np.maximum(is_known.sum(1), 1) for losses, is_known in parts])
    return np.argsort(-means, kind="stable")[:count]


def position_losses(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of the cross-entropy over the labels of each sample, and the number of labels.

    outputs: (batch, classes, *positions). labels: (batch, *positions) -> (batch, 1, 2), or 0 and 1 by class, (batch,
    classes, *positions) -> (batch, classes, 2). Labels of -1 do not count.
    """
    # One sample at a time: the float32 logits of a whole batch of texts may be the largest tensor of a run.
    return torch.stack([_sums(sample, truth) for sample, truth in zip(outputs, labels, strict=True)])


def _sums(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the sums for one sample, (classes, *positions) and (*positions) -> (1, 2), see `position_losses`."""
    if labels.ndim == outputs.ndim:
        outputs, has_label = outputs.float(), (labels >= 0).float()
        losses = F.binary_cross_entropy_with_logits(outputs, labels.clamp(min=0).float(), reduction="none")
        return torch.stack([(losses * has_label).flatten(1).sum(1), has_label.flatten(1).sum(1)], 1)
    rows = outputs.movedim(0, -1).flatten(0, -2).float()  # (positions, classes)
    total = F.cross_entropy(rows, labels.flatten().long(), ignore_index=-1, reduction="sum")
    return torch.stack([total, (labels != -1).sum().float()])[None]
