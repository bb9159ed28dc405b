"""Find records with one signal under several names, whatever their gain, offset and rounding."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kdkit_ecg.doctor.findings import RecordReport
from kdkit_ecg.doctor.samples import Samples

Floats = NDArray[np.float64]

TURNS = 2  # numbers that a lead is sketched in
NEAR = 0.5  # sketches of one signal, rounded to 1/10 of its standard deviation, are less than this apart
SAME = 0.99  # correlation of each lead above which two records are one signal


def sketch_of(samples: Samples, leads: Sequence[str], invalid: NDArray[np.bool_]) -> NDArray[np.float32] | None:
    """Return a few numbers that are close for the same signal, and for no other: (leads, time) -> (leads * TURNS,).

    Each lead, with mean 0 and standard deviation 1, is multiplied by sequences of random signs, summed over time and
    divided by the root of its length. The numbers differ between signals with a standard deviation of 1; gain, offset
    and the order of the leads do not change them, and rounding hardly does. None where all leads are flat.
    """
    scaled = standardised(samples, invalid)[np.argsort(leads)]
    if not scaled.any():
        return None
    sketch: Floats = scaled @ _signs(samples.shape[1]).T / np.sqrt(samples.shape[1])
    return sketch.ravel().astype(np.float32)


def standardised(samples: Samples, invalid: NDArray[np.bool_]) -> Floats:
    """Return each lead with mean 0 and standard deviation 1; flat leads and invalid samples are 0."""
    validation = np.maximum(1, (~invalid).sum(axis=1, keepdims=True))
    centred = np.where(invalid, 0, samples - np.where(invalid, 0, samples).sum(axis=1, keepdims=True) / validation)
    deviation = np.sqrt((centred**2).sum(axis=1, keepdims=True) / validation)
    scaled: Floats = centred / np.where(deviation > 0, deviation, 1)
    return scaled


def near_pairs(records: Sequence[RecordReport]) -> Iterator[tuple[RecordReport, RecordReport]]:
    """Yield the pairs of records with as many samples of the same leads and with sketches that are near."""
    from scipy.spatial import KDTree  # a quarter of a second

    alike: dict[tuple[int, tuple[str, ...]], list[RecordReport]] = defaultdict(list)
    for each in records:
        if each.sketch is not None:
            alike[each.samples, tuple(sorted(each.leads))].append(each)
    for group in alike.values():
        tree = KDTree(np.stack([each.sketch for each in group if each.sketch is not None]))
        for one, other in sorted(tree.query_pairs(NEAR)):
            yield group[one], group[other]


def similarity(one: Samples, other: Samples, marks: tuple[int | None, int | None]) -> float:
    """Return the smallest correlation of a lead of one with that of the other; leads are in the same order.

    marks: the value of either that marks an invalid sample. A lead that is flat in both is left out, in one it is 0.
    """
    first, second = (standardised(each, each == mark) for each, mark in zip((one, other), marks, strict=True))
    alive = first.any(axis=1) | second.any(axis=1)
    return float((first * second).mean(axis=1)[alive].min(initial=1.0))


@lru_cache(maxsize=8)
def _signs(time: int) -> Floats:
    """Return (TURNS, time) of 1 and -1, the same on any machine."""
    signs: Floats = np.random.Generator(np.random.PCG64(0)).choice(np.array([-1.0, 1.0]), size=(TURNS, time))
    return signs
