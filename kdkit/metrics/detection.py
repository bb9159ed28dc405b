"""The mean average precision of detected boxes, as COCO computes it, also on many resamples of the images at once."""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdkit.errors import DataError, RecipeError
from kdkit.metrics.base import (
    Bools,
    Floats,
    Predictions,
    mean_over_classes,
    note_on_missing,
    ratio,
    undefined_by_class,
)
from kdkit.metrics.resampling import CountedMetric, Counts, Resampled, count_blocks
from kdkit.utils.validation import is_number

_COCO = tuple(step / 100 for step in range(50, 100, 5))
_RECALLS = np.linspace(0, 1, 101)  # those of COCO, at which precisions are averaged
_MOST = 100  # detections of a class in an image


@dataclass(frozen=True, slots=True)
class MeanAveragePrecision(CountedMetric):
    """Mean average precision of boxes, over classes and overlaps: regression with packed labels, in [0, 1].

    It is that of COCO without area ranges and crowds: at most 100 detections of a class in an image, and the mean
    precision at 101 recalls. Classes without an object are left out.

    Labels are (samples, objects, 5): x1, y1, x2, y2 and the class, from 1 on; rows of class 0 are padding. Outputs are
    (samples, detections, 6): the same and the score, above 0; rows with a score of 0 are padding. There are values by
    class if the classes have names, TorchData(..., classes=[...]), the first of which is that of class 1.

    overlaps: the least intersection over union of a detection with its object. The default is 0.5, 0.55, ..., 0.95, and
    the name of the metric then is "map", otherwise such as "map_50".
    """

    overlaps: tuple[float, ...] = _COCO

    def __post_init__(self) -> None:
        overlaps = tuple(self.overlaps) if isinstance(self.overlaps, Iterable) else ()
        if not overlaps or not all(is_number(overlap) and 0 < overlap <= 1 for overlap in overlaps):
            raise RecipeError(f"overlaps must be numbers above 0 and at most 1, such as (0.5,); got {self.overlaps!r}")
        object.__setattr__(self, "overlaps", overlaps)

    @property
    def name(self) -> str:
        """The name in tables, such as map_50."""
        suffixes = [] if self.overlaps == _COCO else [f"{100 * overlap:g}" for overlap in self.overlaps]
        return "_".join(["map", *suffixes])

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        """Return the metric for each resample. Raises DataError if labels and outputs are not packed boxes."""
        _require_boxes(test)
        names = _class_names(test)
        present = test.labels[..., 4]
        classes = np.arange(1, len(names) + 1) if names else np.unique(present[present > 0])
        by_class = np.full((len(classes), counts.shape[1]), np.nan)
        for row, number in enumerate(classes):
            matches = _matches(test, number, np.array(self.overlaps))
            blocks = [_average_precision(matches, block) for block in count_blocks(counts)]
            by_class[row] = np.concatenate(blocks)
        values = mean_over_classes(by_class)
        return Resampled(values, by_class if names else undefined_by_class(test, len(values)))

    def _note(self, test: Predictions, defined: Container[str]) -> str:
        return note_on_missing(test, defined, "no objects") if _class_names(test) else ""


class _Matches(NamedTuple):
    """The detections of a class in all images, by falling score.

    images: the image of each detection, (detections,). is_right: whether it is matched to an object, (overlaps,
    detections). objects: the number of objects in each image, (images,).
    """

    images: NDArray[np.int64]
    is_right: Bools
    objects: Floats


def _matches(test: Predictions, number: float, overlaps: Floats) -> _Matches:
    """Match the detections of a class to its objects, the highest score first, each to the object it overlaps most."""
    images, scores, right = [], [], []
    is_object = test.labels[..., 4] == number
    is_detected = (np.rint(test.outputs[..., 4]) == number) & (test.outputs[..., 5] > 0)
    for image in is_detected.any(1).nonzero()[0]:
        detected = test.outputs[image][is_detected[image]].astype(np.float64)
        detected = detected[np.argsort(-detected[:, 5], kind="stable")[:_MOST]]
        overlap = _intersection_over_union(detected[:, :4], test.labels[image][is_object[image], :4].astype(np.float64))
        is_right = np.zeros((len(overlaps), len(detected)), dtype=bool)
        is_free = np.ones((len(overlaps), overlap.shape[1]), dtype=bool)
        for row in (overlap >= overlaps.min()).any(1).nonzero()[0]:
            candidates = np.where(is_free & (overlap[row] >= overlaps[:, None]), overlap[row], -1.0)
            best = candidates.argmax(1)
            matched = (candidates.max(1) >= 0).nonzero()[0]
            is_right[matched, row] = True
            is_free[matched, best[matched]] = False
        images.append(np.full(len(detected), image))
        scores.append(detected[:, 5])
        right.append(is_right)
    objects = is_object.sum(1).astype(np.float64)
    if not images:
        return _Matches(np.zeros(0, np.int64), np.zeros((len(overlaps), 0), dtype=bool), objects)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return _Matches(np.concatenate(images)[order], np.concatenate(right, axis=1)[:, order], objects)


def _average_precision(matches: _Matches, counts: Counts) -> Floats:
    """Return the average precision of a class for each resample, as the mean over overlaps; NaN without objects."""
    objects = matches.objects @ counts  # (resamples,)
    detected = counts[matches.images].cumsum(0, dtype=np.float64)  # (detections, resamples)
    total = np.zeros(len(objects))
    for is_right in matches.is_right:
        # Recall and precision rise at detections that are right only, which are often few.
        hits = counts[matches.images[is_right]].cumsum(0, dtype=np.float64)
        precision = np.nan_to_num(ratio(hits, detected[is_right]))  # 0 as long as a resample has no detection
        # The largest precision at this recall or a higher one; 0 if the recall is not reached.
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        precision = np.concatenate([precision, np.zeros((1, len(objects)))])
        recall = ratio(hits, np.broadcast_to(objects, hits.shape))
        for column in (objects > 0).nonzero()[0]:
            first = np.searchsorted(recall[:, column], _RECALLS)
            total[column] += precision[first, column].mean()
    return np.where(objects > 0, total / len(matches.is_right), np.nan)


def _intersection_over_union(detected: Floats, objects: Floats) -> Floats:
    """Return the overlaps of boxes, (detections, 4) and (objects, 4) -> (detections, objects)."""
    low = np.maximum(detected[:, None, :2], objects[None, :, :2])
    high = np.minimum(detected[:, None, 2:], objects[None, :, 2:])
    common: Floats = (high - low).clip(min=0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(1) for boxes in (detected, objects)]
    return ratio(common, areas[0][:, None] + areas[1] - common)


def _class_names(test: Predictions) -> tuple[str, ...]:
    """Return the names of the classes; none if the data has only the numbers of its columns."""
    numbers = tuple(map(str, range(len(test.classes))))
    return () if test.classes == numbers else test.classes


def _require_boxes(test: Predictions) -> None:
    """Raise DataError unless labels and outputs are packed boxes of the data's classes."""
    labels, outputs = test.labels, test.outputs
    if (labels.ndim, labels.shape[-1], outputs.ndim, outputs.shape[-1]) != (3, 5, 3, 6):
        raise DataError(
            "mean average precision compares labels (samples, objects, 5), of x1, y1, x2, y2 and class, with outputs "
            f"(samples, detections, 6), of the same and a score; got labels {labels.shape} and outputs "
            f"{outputs.shape}; pack the boxes in a collate_fn, and the detections by Net(..., element=...)"
        )
    classes, names = labels[..., 4], _class_names(test)
    most = len(names) if names else np.inf
    is_invalid = ~((classes >= 0) & (classes <= most) & (classes == np.rint(classes)))  # True for NaN
    if is_invalid.any():
        numbered = f"from 1 to {most}, or 0 in padding; TorchData(..., classes=[...]) names all" if names else "numbers"
        raise DataError(f"the last column of labels must be classes {numbered}; got {classes[is_invalid][0]:g}")
    if ((classes == 0) & labels[..., :4].any(2)).any():
        raise DataError("a box of the labels has class 0, which is padding; number the classes from 1")
    is_reversed = (labels[..., 2:4] < labels[..., :2]).any(2) & (classes > 0)
    if is_reversed.any():
        raise DataError(
            f"boxes of labels must be x1, y1, x2, y2; got {labels[is_reversed][0, :4].tolist()}; if they are x, y, "
            "width, height, as in files of COCO: torchvision.ops.box_convert(boxes, 'xywh', 'xyxy')"
        )
    if rows := int(np.isnan(outputs).any((1, 2)).sum()):
        raise DataError(f"outputs must be numbers; got NaN in {rows} of {len(outputs)} samples; did training diverge?")
    scores = outputs[..., 5]
    if (scores < 0).any():
        raise DataError(
            f"scores of detections must be at least 0, which is padding; got {scores.min():g}; if they are logits, "
            "pass their sigmoid or softmax"
        )
    if ((np.rint(outputs[..., 4]) < 1) & (scores > 0)).any():
        raise DataError("a detection with a score has class 0, which is padding; number the classes from 1")
