"""Rows of the train, validation and test splits, and the classes that a split lacks."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdkit import RecipeError

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
            if len(rows) and not (name == "validation" and self.validation is self.test):
                absent = ~labels[torch.from_numpy(rows)].any(0)  # (classes,)
                names = [label for label, is_absent in zip(classes, absent.tolist(), strict=True) if is_absent]
                if names:
                    yield f"  no positive in {name}: {', '.join(names)}"


def splits_of_folds(folds: Sequence[int], *, test: int, validation: int, validation_split: ValidationSplit) -> Splits:
    """Return the rows of fold number `test`, those of fold number `validation`, and all others for training.

    validation_split: "separate", or "test" to validate on the test fold; the fold `validation` is then used for
    training. Raises RecipeError if test and validation are the same fold although validation_split is "separate".
    """
    fold_of_row = np.asarray(folds)
    test_rows = np.flatnonzero(fold_of_row == test)
    if validation_split == "test":
        return Splits(np.flatnonzero(fold_of_row != test), test_rows, test_rows)
    if validation == test:
        raise RecipeError(f"the validation fold must differ from the test fold, got {test} for both")
    validation_rows = np.flatnonzero(fold_of_row == validation)
    return Splits(np.flatnonzero((fold_of_row != test) & (fold_of_row != validation)), validation_rows, test_rows)
