"""Metrics of the rank of the correct class, such as of the relevant item among the candidates of a query."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from kdkit.errors import DataError
from kdkit.metrics.base import (
    Floats,
    Predictions,
    class_indices,
    ratio,
    reduced_positions,
    require_class_outputs,
    row_blocks,
    true_classes,
    undefined_by_class,
    unknown_labels,
)
from kdkit.metrics.resampling import CountedMetric, Counts, Resampled
from kdkit.utils.validation import validate_count

_BLOCK = 2**22  # the number of comparisons in memory at a time


@dataclass(frozen=True, slots=True)
class RankMetric(CountedMetric):
    """Base class of means of a gain, which depends on the rank of the class of a sample among its outputs.

    For labels per position, it is the mean over all positions with a label. k: ranks that are not among the first k
    have no gain.
    labels_last: whether labels come last among equal outputs, rather than the first class coming first, as in argmax.
    """

    accepts_positions: ClassVar[bool] = True
    labels_last: ClassVar[bool] = False
    k: int = 10

    def __post_init__(self) -> None:
        validate_count("k", self.k)

    @property
    def name(self) -> str:
        """The name in tables."""
        raise NotImplementedError

    def _gains(self, ranks: Tensor) -> Tensor:
        """Return the gain of each rank, of the same shape. ranks: how many classes come before the label."""
        raise NotImplementedError

    def reduce_positions(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the total gain of the labels of each sample, and how many it has, (batch, 2)."""
        self._require_classes(outputs.shape[1])
        if labels.ndim == outputs.ndim:
            raise self._several_labels()
        has_label = labels >= 0
        gains = self._gains(self._ranks(outputs, labels.clamp(min=0).long())) * has_label
        return torch.stack([numbers.flatten(1).sum(1) for numbers in (gains, has_label)], 1)

    def _list_gains(self, relevant: Tensor, totals: Tensor) -> Tensor:
        """Return the gain of each list, (samples,). Raises DataError if there is none for several labels.

        relevant: whether the classes at the first ranks are labels, (samples, k or fewer). totals: the number of
        labels, (samples,).
        """
        raise self._several_labels()

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return the mean for each resample."""
        if test.per_position:
            gains, labels = reduced_positions(self, test).astype(np.float64).T @ counts
        else:
            require_class_outputs(test)
            self._require_classes(len(test.classes))
            by_sample = self._gains_of_ranks(test) if test.labels.ndim == 1 else self._gains_of_lists(test)
            has_label, times = ~np.isnan(by_sample), counts.astype(np.float64)
            gains, labels = np.where(has_label, by_sample, 0) @ times, has_label @ times
        return Resampled(ratio(gains, labels), undefined_by_class(test, counts.shape[1]))

    def _gains_of_ranks(self, test: Predictions) -> Floats:
        outputs, labels = torch.from_numpy(test.outputs), torch.from_numpy(class_indices(test))
        blocks = row_blocks(test.outputs.shape, _BLOCK)
        ranks = torch.cat([self._ranks(outputs[rows], labels[rows]) for rows in blocks])
        return self._gains(ranks).double().numpy()

    def _gains_of_lists(self, test: Predictions) -> Floats:
        """Return the gain of each sample with several labels, NaN if it has none. Unknown classes come last."""
        truth, is_unknown, outputs, gains = true_classes(test), unknown_labels(test), test.outputs, []
        relevance = truth.astype(np.int8)
        if is_unknown is not None:
            relevance, outputs = np.where(is_unknown, np.int8(2), relevance), np.where(is_unknown, -np.inf, outputs)
        for rows in row_blocks(outputs.shape, _BLOCK):
            # The order of equal outputs: other classes, labels, unknown ones.
            labels, order = torch.from_numpy(relevance[rows]).sort(dim=1)
            totals, scores = (labels == 1).sum(1), torch.from_numpy(outputs[rows]).gather(1, order)
            order = scores.sort(dim=1, descending=True, stable=True).indices[:, : self.k]
            of_lists = self._list_gains(labels.gather(1, order) == 1, totals).double()
            gains.append(of_lists.masked_fill(totals == 0, torch.nan).numpy())
        return np.concatenate(gains)

    def _ranks(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return how many classes come before the label, (batch, ...), for outputs (batch, classes, ...).

        NaN comes first, so that a network with NaN is not right.
        """
        of_label = outputs.gather(1, labels.unsqueeze(1))
        classes = torch.arange(outputs.shape[1], device=outputs.device).view(1, -1, *(1 for _ in outputs.shape[2:]))
        if self.labels_last:
            comes_later = (outputs < of_label) | (classes == labels.unsqueeze(1))
        else:
            comes_later = (outputs < of_label) | ((outputs == of_label) & (classes >= labels.unsqueeze(1)))
        return (~comes_later).sum(1)

    def _require_classes(self, classes: int) -> None:
        """Raise DataError if the metric means nothing for as many classes."""

    def _several_labels(self) -> DataError:
        advice = "use CrossEntropy or F1 for several labels"
        return DataError(f"{self.name} takes one class per sample or position; {advice}")


@dataclass(frozen=True, slots=True)
class TopKAccuracy(RankMetric):
    """The share of samples whose class is among the k with the largest outputs: multiclass, in [0, 1].

    For labels per position, it is the share of all positions with a label. k: less than the number of classes. It is
    the recall at k, and the hit rate, of rankings with one relevant item.
    """

    k: int = 5

    @property
    def name(self) -> str:
        """The name in tables, such as top_5_accuracy."""
        return f"top_{self.k}_accuracy"

    def _gains(self, ranks: Tensor) -> Tensor:
        """Return whether each rank is among the first k."""
        return ranks < self.k

    def _require_classes(self, classes: int) -> None:
        """Raise DataError if all classes are among the first k."""
        if self.k >= classes:
            raise DataError(f"{self.name} is 1 for every network with {classes} classes; pass a smaller k")


@dataclass(frozen=True, slots=True)
class MRR(RankMetric):
    """The mean reciprocal rank of the first relevant item: multiclass and multilabel, in [0, 1].

    The relevant items of a sample, such as a query or a user, are its class or classes. 1 if one of them has the
    largest output, 1/2 if the first one has the second largest, and 0 if none is among the first k. Samples without a
    label, and items whose label is unknown, are left out. For labels per position, one class each, it is the mean over
    all positions with a label. Relevant items come last among equal outputs, so equal scores of all items have no
    value, wherever they are.
    """

    accepts_unknown: ClassVar[bool] = True
    labels_last: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The name in tables, such as mrr_10."""
        return f"mrr_{self.k}"

    def _gains(self, ranks: Tensor) -> Tensor:
        """Return the reciprocal of each rank, counted from 1."""
        return (ranks < self.k) / (ranks + 1)

    def _list_gains(self, relevant: Tensor, totals: Tensor) -> Tensor:
        """Return the reciprocal of the rank of the first label."""
        first = relevant.int().argmax(1)
        return relevant.any(1) / (first + 1)


@dataclass(frozen=True, slots=True)
class NDCG(RankMetric):
    """Normalised discounted cumulative gain of relevant items: multiclass and multilabel, in [0, 1].

    The relevant items of a sample, such as a query or a user, are its class or classes. Each that is among the k
    largest outputs adds 1/log2(1 + rank), with ranks from 1; the sum is divided by that of a list that begins with all
    of them. Samples without a label, and items whose label is unknown, are left out. For labels per position, one class
    each, it is the mean over all positions with a label. Relevant items come last among equal outputs, so equal scores
    of all items have no value, wherever they are.
    """

    accepts_unknown: ClassVar[bool] = True
    labels_last: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The name in tables, such as ndcg_10."""
        return f"ndcg_{self.k}"

    def _gains(self, ranks: Tensor) -> Tensor:
        """Return the discount of each rank."""
        return (ranks < self.k) / (ranks + 2).log2()

    def _list_gains(self, relevant: Tensor, totals: Tensor) -> Tensor:
        """Return the sum of the discounts of the labels, divided by that of a list that begins with all of them."""
        discounts = 1 / torch.arange(2, relevant.shape[1] + 2).double().log2()
        ideal = discounts.cumsum(0)[totals.clamp(1, len(discounts)) - 1]
        return (relevant * discounts).sum(1) / ideal
