"""The names of samples, by which the samples of two data sets are compared."""

import hashlib

import torch
from torch import Tensor

from kdkit.data.dataset import LoaderSplit, Split


def name_digests(split: Split | LoaderSplit) -> Tensor | None:
    """Return a digest of the name of each sample, (samples,) int64; None if samples have no names, or they fail."""
    if isinstance(split, LoaderSplit):
        return None
    try:
        names = [str(name) for name in split.report_names(torch.arange(len(split)))]
    except Exception:  # user-defined data may raise anything; when a run saves names for its report, it warns
        return None
    if not names:
        return None
    digests = (hashlib.sha256(name.encode(errors="surrogateescape")).digest() for name in names)
    return torch.tensor([int.from_bytes(digest[:8], "little", signed=True) for digest in digests])
