"""Rows of the train, validation and test splits, by folds or at random, and the classes that a split lacks."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdkit import RecipeError
from kdkit.utils.validation import is_number
from kdkit_ecg.datasets.folds import hash_fraction

Rows = NDArray[np.int64]
ValidationSplit = Literal["separate", "test"]


class Splits(NamedTuple):
    """The rows of each split, (rows,) int64, ascending. The splits are disjoint, unless validation is test itself."""

    train: Rows
    validation: Rows
    test: Rows

    def missing_classes(self, labels: Tensor, classes: Sequence[str]) -> Iterator[str]:
        """Yield a line for each split with the classes that have no positive in it; labels: (records, classes)."""
        for name, rows in zip(self._fields, self, strict=True):
            # An empty split is an error when it is used; a shared one is listed as test.
            if len(rows) and not (name == "validation" and np.array_equal(rows, self.test)):
                absent = ~(labels[torch.from_numpy(rows)] > 0).any(0)  # (classes,); unknown labels are NaN
                names = [label for label, is_absent in zip(classes, absent.tolist(), strict=True) if is_absent]
                if names:
                    yield f"  no positive in {name}: {', '.join(names)}"


def splits_of_folds(folds: Sequence[int], *, test: int, validation: int) -> Splits:
    """Return the rows of the folds `test` and `validation`, which may be the same, and all others for training."""
    fold_of_row = np.asarray(folds)
    is_test, is_validation = fold_of_row == test, fold_of_row == validation
    return Splits(*map(np.flatnonzero, (~(is_test | is_validation), is_validation, is_test)))


def split_by_patient(patients: Sequence[str], seed: int, shares: Sequence[float]) -> Splits:
    """Return the rows of each split; `patients` contains the patient of each row. shares: see `require_shares`.

    The split of a patient is a function of (seed, patient) alone, so additional records do not move any patient. In
    return, the shares are met only on average.
    """
    bounds = np.cumsum(shares)[:-1]
    split_of_row = np.searchsorted(bounds, [hash_fraction(seed, patient) for patient in patients], side="right")
    return Splits(*(np.flatnonzero(split_of_row == split) for split in range(len(Splits._fields))))


def require_shares(shares: Sequence[float]) -> None:
    """Raise RecipeError unless the shares of train, validation and test are numbers of at least 0 that add up to 1."""
    numbers = isinstance(shares, Sequence) and len(shares) == len(Splits._fields) and all(map(is_number, shares))
    if not numbers or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:  # shares such as 0.7 are rounded to binary
        raise RecipeError(
            f"shares must be three numbers of at least 0 that add up to 1, such as (0.7, 0.15, 0.15), got {shares!r}"
        )
