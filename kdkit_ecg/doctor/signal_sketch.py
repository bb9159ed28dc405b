"""Find records with the same signal under different names, regardless of gain, offset and rounding."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kdkit_ecg.doctor.findings import RecordReport
from kdkit_ecg.records.filters import FLAT

Floats = NDArray[np.float64]

PROJECTIONS = 2  # numbers per lead in a sketch
MAX_DISTANCE = 0.5  # between the sketches of one signal, even if rounded to 1/10 of its standard deviation
MIN_CORRELATION = 0.99  # of every lead, for two records to have the same signal


def sketch_of(signal: Floats, leads: Sequence[str]) -> NDArray[np.float32] | None:
    """Return some numbers that are similar only for equal signals: (leads, time) -> (leads * PROJECTIONS,).

    A random projection: each lead, scaled to mean 0 and standard deviation 1, is multiplied by sequences of random
    signs, summed over time and divided by the root of its length. The numbers of two different signals differ with a
    standard deviation of about 1. Gain, offset and the order of the leads do not change them, and rounding changes them
    little. Returns None if all leads are flat.
    """
    scaled = standardise(signal)[np.argsort(leads)]
    if not scaled.any():
        return None
    time = scaled.shape[1]
    sketch: Floats = scaled @ _random_signs(time).T / np.sqrt(time)  # (leads, PROJECTIONS)
    return sketch.ravel().astype(np.float32)


def standardise(signal: Floats) -> Floats:
    """Scale the valid samples of each lead to mean 0 and standard deviation 1. Flat leads, invalid samples become 0."""
    invalid = np.isnan(signal)
    valid = np.maximum(1, (~invalid).sum(axis=1, keepdims=True))  # at least 1: a lead may have no valid sample
    centred = np.where(invalid, 0, signal - np.nansum(signal, axis=1, keepdims=True) / valid)
    deviation = np.sqrt((centred**2).sum(axis=1, keepdims=True) / valid)
    flat = deviation < FLAT
    scaled: Floats = np.where(flat, 0, centred) / np.where(flat, 1, deviation)
    return scaled


def near_pairs(records: Sequence[RecordReport]) -> Iterator[tuple[RecordReport, RecordReport]]:
    """Yield the pairs of records with the same leads and number of samples and with similar sketches."""
    from scipy.spatial import KDTree  # takes a quarter of a second

    comparable: dict[tuple[int, tuple[str, ...]], list[RecordReport]] = defaultdict(list)
    for record in records:
        if record.sketch is not None:
            comparable[record.samples, tuple(sorted(record.leads))].append(record)
    for group in comparable.values():
        # A tree finds the pairs of n records without comparing all n * n.
        tree = KDTree(np.stack([record.sketch for record in group if record.sketch is not None]))
        for first, second in sorted(tree.query_pairs(MAX_DISTANCE)):
            yield group[first], group[second]


def correlation(first: Floats, second: Floats) -> float:
    """Return the smallest correlation of a lead in two signals with leads in the same order.

    A lead that is flat in both is skipped; if it is flat in one, its correlation is 0.
    """
    x, y = standardise(first), standardise(second)
    not_flat = x.any(axis=1) | y.any(axis=1)
    sizes = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return float(((x * y).sum(axis=1) / np.where(sizes > 0, sizes, 1))[not_flat].min(initial=1.0))


@lru_cache(maxsize=8)
def _random_signs(time: int) -> Floats:
    """Return (PROJECTIONS, time) of 1 and -1, the same on any machine."""
    generator = np.random.Generator(np.random.PCG64(0))
    signs: Floats = generator.choice(np.array([-1.0, 1.0]), size=(PROJECTIONS, time))
    return signs
