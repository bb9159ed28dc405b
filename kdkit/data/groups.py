"""The groups of samples that depend on each other, such as the patient of each scan."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import RandomSampler

from kdkit.data.dataset import Data, LoaderSplit, Split
from kdkit.errors import DataError


def groups_of(split: Split | LoaderSplit, samples: int | None, name: str = "a split") -> NDArray[np.int64] | None:
    """Return the group of each sample, (samples,), or None. name: of the split, for the error.

    samples: how many there are; None if the number is not known. Raises DataError if there is not one integer for each.
    """
    if split.groups is None:
        return None
    groups: Any = split.groups
    try:
        array = groups.cpu().numpy() if isinstance(groups, Tensor) else np.asarray(groups)
    except ValueError:  # lists of different lengths
        got = f"a {type(groups).__name__}"
    else:
        if array.ndim == 1 and samples in (None, len(array)) and array.dtype.kind in "iu":
            return array.astype(np.int64)
        got = f"{array.dtype} {array.shape}"
    rows = "samples" if samples is None else samples
    raise DataError(
        f"groups of {name} must be integers, one per row: ({rows},); got {got}; number the names of groups of all "
        "splits together, such as with numpy.unique(names, return_inverse=True)[1]"
    )


def groups_by_split(data: Data) -> dict[str, NDArray[np.int64]]:
    """Return the groups of the splits that have them, by name.

    Raises DataError as `groups_of` does, and if the samples of another split than the training data are shuffled.
    """
    groups = {}
    for name, split in {"train": data.train, "validation": data.validation, "test": data.test}.items():
        if split is None or split.groups is None:
            continue
        if isinstance(split, LoaderSplit):
            # With a batch sampler of the user, `loader.sampler` is a default that is not used.
            sampler = getattr(getattr(split.loader, "batch_sampler", None), "sampler", None)
            if name != "train" and isinstance(sampler, RandomSampler):
                raise DataError(
                    f"the {name} data have groups, but their DataLoader shuffles the samples, so each would get the "
                    "group of another one; pass shuffle=False to it"
                )
        array = groups_of(split, None if isinstance(split, LoaderSplit) else len(split), f"the {name} data")
        if array is not None:
            groups[name] = array
    return groups
