"""An open stage: its teachers and its module."""

import torch

from kdkit.data.batch import Batch
from kdkit.data.dataset import Data, LoaderSplit
from kdkit.losses import BuildContext


def facts_of(data: Data) -> BuildContext:
    """Return what losses may know of the data."""
    train = data.train
    streamed = isinstance(train, LoaderSplit)
    return BuildContext(
        classes=tuple(data.classes), task=data.task, samples=None if streamed else len(train), ids=not streamed
    )


def tiny_batch(data: Data, batch_size: int) -> Batch:
    """Return four samples of the training split, one where a batch is one; or the first batch of a user's loader.

    Of two samples some relations between samples are constant; in data of fewer than four the last one is repeated.
    """
    train = data.train
    if isinstance(train, LoaderSplit):
        return next(iter(train))
    return train.batch(torch.arange(4 if batch_size > 1 and len(train) > 1 else 1).clamp(max=len(train) - 1), 0)
