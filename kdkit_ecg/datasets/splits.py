"""The rows of the train, select and test splits, and what they lack."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdkit import RecipeError

Rows = NDArray[np.int64]
Selection = Literal["separate", "test"]


class Splits(NamedTuple):
    """The rows of each split, (rows,) int64 in order; none is in two of them, save that select may be test itself."""

    train: Rows
    validation: Rows
    test: Rows

    def lacking(self, labels: Tensor, classes: Sequence[str]) -> Iterator[str]:
        """Say which classes a split has no positive of: what is not in train is not learned, or else not scored."""
        for name, rows in zip(self._fields, self, strict=True):
            if len(rows) and not (name == "validation" and self.validation is self.test):
                none = ~labels[torch.from_numpy(rows)].any(0)
                names = [each for each, lacks in zip(classes, none.tolist(), strict=True) if lacks]
                if names:
                    yield f"  no positive in {name}: {', '.join(names)}"


def splits_of(folds: Sequence[int], *, test: int, validation: int, selection: Selection) -> Splits:
    """Return the rows whose fold is `test`, those whose fold is `select`, and all others to learn from.

    selection: "separate", or "test" to choose on what is reported; then the fold `select` is learned from too.
    Raises RecipeError where test and select are one fold though selection is "separate".
    """
    given = np.asarray(folds)
    tested = np.flatnonzero(given == test)
    if selection == "test":
        return Splits(np.flatnonzero(given != test), tested, tested)
    if validation == test:
        raise RecipeError(f"thresholds are chosen on a fold of their own, but it is fold {test} that is reported on")
    return Splits(np.flatnonzero((given != test) & (given != validation)), np.flatnonzero(given == validation), tested)
