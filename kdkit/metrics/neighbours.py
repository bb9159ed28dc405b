"""The accuracy of a classification by the nearest embeddings, as self-supervised encoders are evaluated."""

from collections.abc import Container, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from kdkit.errors import DataError
from kdkit.metrics.base import Bools, Predictions, ratio, row_blocks, undefined_by_class
from kdkit.metrics.resampling import CountedMetric, Counts, Resampled
from kdkit.utils.validation import validate_above_zero, validate_count

_BLOCK = 1 << 24  # the number of cosines in memory at a time: 64 MB of float32


@dataclass(frozen=True, slots=True)
class NearestNeighbours(CountedMetric):
    """The share of samples whose class is that of similar embeddings of the validation split, in [0, 1].

    Outputs are embeddings (samples, width) of any width. Labels are classes, (samples,), in data with
    task="regression", because the outputs are not those classes. The k samples of the validation split with the largest
    cosines vote, each with the weight exp(cosine / temperature). On that split itself, a sample does not find itself.

    k: the number of neighbours. temperature: of the weights; the default is that of DINO (Caron et al. 2021,
    "Emerging Properties in Self-Supervised Vision Transformers", arXiv:2104.14294), whose k is 20. reference: the
    validation split; `fit` sets it.
    """

    any_outputs: ClassVar[bool] = True
    k: int = 20
    temperature: float = 0.07
    reference: Predictions | None = field(default=None, kw_only=True, repr=False, compare=False)

    def __post_init__(self) -> None:
        validate_count("k", self.k)
        validate_above_zero("temperature", self.temperature)

    @property
    def name(self) -> str:
        """The name in tables, such as knn_20_accuracy."""
        return f"knn_{self.k}_accuracy"

    def fit(self, validation: Predictions) -> Self:
        """Return the metric with the embeddings and classes of the validation split."""
        return replace(self, reference=validation)

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return the share for each resample. Raises DataError without a validation split, embeddings and classes."""
        if self.reference is None:
            raise DataError(f"{self.name} compares with the validation split; call fit(validation) first")
        is_right = np.concatenate([np.zeros(0, dtype=bool), *self._is_right(test, self.reference)])
        shares = ratio(is_right @ counts.astype(np.float64), counts.sum(0, dtype=np.float64))
        return Resampled(shares, undefined_by_class(test, counts.shape[1]))

    def _note(self, test: Predictions, defined: Container[str]) -> str:
        if self.reference is None:
            return ""
        classes = np.unique(_classes(test))
        missing = np.setdiff1d(classes, _classes(self.reference))
        if not len(missing):
            return ""
        return (
            f"{len(missing)} of {len(classes)} classes have no sample in the validation split, so theirs are never "
            "right: if splits have different classes, such as people, compare pairs in a metric of your own"
        )

    def _is_right(self, test: Predictions, reference: Predictions) -> Iterator[Bools]:
        """Yield whether the classes of some samples at a time are found."""
        names, columns = np.unique(_classes(reference), return_inverse=True)
        labels, queries, keys = _classes(test), _directions(test), _directions(reference)
        # Without ids, as of the samples of a loader, only a whole split can be recognized.
        is_same = test.ids is None and np.array_equal(queries, keys)
        ids = [np.arange(len(queries)), np.arange(len(keys))] if is_same else [test.ids, reference.ids]
        k = min(self.k, len(keys))
        for block in row_blocks((len(queries), len(keys)), _BLOCK):
            cosines = queries[block] @ keys.T
            if ids[0] is not None and ids[1] is not None:
                cosines[ids[0][block, None] == ids[1]] = -np.inf
            # argpartition of numpy takes 16 times as long
            largest, nearest = (part.numpy() for part in torch.from_numpy(cosines).topk(k, 1))
            # Divided by the largest weight, so that not all are 0 at a low temperature; -inf is no neighbour.
            weights = np.exp((largest - np.maximum(largest[:, :1], -2)).astype(np.float64) / self.temperature)
            votes = np.zeros((len(cosines), len(names)))
            np.add.at(votes, (np.arange(len(cosines))[:, None], columns[nearest]), weights)
            yield (names[votes.argmax(1)] == labels[block]) & votes.any(1)


def _classes(predictions: Predictions) -> NDArray[np.int64]:
    """Return the classes, (samples,). Raises DataError for labels that are something else."""
    labels = predictions.labels.reshape(len(predictions.labels), -1)
    if labels.shape[1:] != (1,) or not np.array_equal(labels, np.rint(labels)):
        raise DataError(
            f"nearest neighbours have one class per sample, (samples,) of whole numbers; got labels "
            f"{predictions.labels.shape} of dtype {predictions.labels.dtype}"
        )
    return labels[:, 0].astype(np.int64)


def _directions(predictions: Predictions) -> NDArray[np.float32]:
    """Return the embeddings as vectors of length 1, (samples, width). Raises DataError for other outputs."""
    outputs = predictions.outputs
    if outputs.ndim != 2 or not np.isfinite(outputs).all():
        raise DataError(
            f"nearest neighbours are those of embeddings (samples, width) of finite numbers; got {outputs.shape}, "
            f"{int((~np.isfinite(outputs)).sum())} of them NaN or infinite"
        )
    lengths = np.linalg.norm(outputs.astype(np.float64), axis=1, keepdims=True)
    directions: NDArray[np.float32] = (outputs / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
    return directions
