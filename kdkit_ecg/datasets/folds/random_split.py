"""Share records out by chance alone, so that no patient is in two splits and further records move nobody."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kdkit import RecipeError


def split_by_patient(
    patients: Sequence[str], seed: int, shares: Sequence[float] = (0.7, 0.15, 0.15)
) -> tuple[NDArray[np.int64], ...]:
    """Return the rows of each split, in order; `patients` names the patient of each row.

    A patient's split is a function of (seed, patient) alone, so further records move nobody. In return the shares are
    met only on average. Raises RecipeError for shares that are negative or do not add up to 1.
    """
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise RecipeError(f"shares are parts of a whole, such as (0.7, 0.15, 0.15), not {tuple(shares)}")
    bounds = np.cumsum(shares)[:-1]
    places = np.searchsorted(bounds, [fraction(seed, patient) for patient in patients], side="right")
    return tuple(np.flatnonzero(places == split) for split in range(len(shares)))


def fraction(seed: int, patient: str) -> float:
    """Return a number in [0, 1) that looks random; Python's own hash of a text changes from run to run."""
    digest = hashlib.blake2b(f"{seed}\n{patient}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48
