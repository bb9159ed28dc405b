"""The groups of samples that depend on each other, such as the patient of each scan."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from kdkit.data.dataset import Data, LoaderSplit, Split
from kdkit.errors import DataError


def groups_of(split: Split | LoaderSplit, samples: int | None, name: str = "a split") -> NDArray[np.int64] | None:
    """Return the group of each sample, (samples,), or None. name: of the split, for the error.

    samples: how many there are; None if the number is not known. Raises DataError if there is not one integer for each.
    """
    if split.groups is None:
        return None
    try:
        array = torch.as_tensor(split.groups).cpu().numpy()
    except (TypeError, ValueError, RuntimeError):  # texts, or lists of different lengths
        got = f"a {type(split.groups).__name__}"
    else:
        if array.ndim == 1 and samples in (None, len(array)) and array.dtype.kind in "iu":
            return array.astype(np.int64)
        got = f"{array.dtype} {array.shape}"
    rows = "samples" if samples is None else samples
    raise DataError(
        f"groups of {name} must be integers, one per row: ({rows},); got {got}; number the names of groups of all "
        "splits together, such as with numpy.unique(names, return_inverse=True)[1]"
    )


def groups_by_split(data: Data) -> Mapping[str, NDArray[np.int64]]:
    """Return the groups of the splits that have them, by name. Raises DataError as `groups_of` does."""
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    groups = {
        name: groups_of(split, None if isinstance(split, LoaderSplit) else len(split), f"the {name} data")
        for name, split in splits.items()
        if split is not None
    }
    return {name: array for name, array in groups.items() if array is not None}
