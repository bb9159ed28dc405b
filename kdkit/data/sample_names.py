"""The names of samples, by which the samples of two data sets are compared."""

import hashlib
from contextlib import suppress

import torch
from torch import Tensor

from kdkit.data.dataset import LoaderSplit, Split


def name_digests(split: Split | LoaderSplit) -> Tensor:
    """Return a digest of the name of each sample, (samples,) int64; empty if samples have no names, or they fail."""
    names: list[str] = []
    # User-defined data may raise anything. When a run saves names for its report, it warns.
    with suppress(Exception):
        names = [] if isinstance(split, LoaderSplit) else [*map(str, split.report_names(torch.arange(len(split))))]
    digests = (hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest() for name in names)
    numbers = [int.from_bytes(digest[:8], "little", signed=True) for digest in digests]
    return torch.tensor(numbers, dtype=torch.int64)
