"""The names of samples, by which the samples of two data sets are compared."""

import hashlib

import torch
from torch import Tensor

from kdkit.data.dataset import LoaderSplit, Split


def name_digests(split: Split | LoaderSplit) -> Tensor | None:
    """Return a digest of the name of each sample, (samples,) int64; None if the samples have no names."""
    if isinstance(split, LoaderSplit) or not len(split.report_names(torch.arange(min(1, len(split))))):
        return None
    digests = (hashlib.sha256(name.encode()).digest() for name in split.report_names(torch.arange(len(split))))
    return torch.tensor([int.from_bytes(digest[:8], "little", signed=True) for digest in digests])
