"""Split records at random by patient, so that additional records never move existing ones."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kdkit import RecipeError


def split_by_patient(
    patients: Sequence[str], seed: int, shares: Sequence[float] = (0.7, 0.15, 0.15)
) -> tuple[NDArray[np.int64], ...]:
    """Return the rows of each split, ascending; `patients` contains the patient of each row.

    The split of a patient is a function of (seed, patient) alone, so additional records move no patient. In return, the
    shares are reached only on average. Raises RecipeError for shares that are negative or do not add up to 1.
    """
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:  # 1e-9: shares such as 0.7 are rounded to binary
        raise RecipeError(f"shares must be at least 0 and add up to 1, such as (0.7, 0.15, 0.15), got {tuple(shares)}")
    bounds = np.cumsum(shares)[:-1]
    split_of_row = np.searchsorted(bounds, [hash_fraction(seed, patient) for patient in patients], side="right")
    return tuple(np.flatnonzero(split_of_row == split) for split in range(len(shares)))


def hash_fraction(seed: int, text: str) -> float:
    """Return a pseudo-random number in [0, 1) for a text. Unlike hash(), it is the same in every process."""
    digest = hashlib.blake2b(f"{seed}\n{text}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48
