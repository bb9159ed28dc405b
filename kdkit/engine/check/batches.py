"""Try batches of the sizes that an epoch has, since a step or a batch transform may fail for some of them."""

import torch

from kdkit.data.batch import Batch
from kdkit.data.dataset import Data, LoaderSplit
from kdkit.data.loading import shard_rows, training_batch_sizes
from kdkit.engine.check.preserve import preserve
from kdkit.engine.stage.batch_transform import BatchTransform, transformed
from kdkit.engine.stage.open_stage import OpenStage
from kdkit.errors import KdkitError, first_line
from kdkit.utils import collectives
from kdkit.utils.devices import Precision, autocast


def batch_problems(open_stage: OpenStage, data: Data, batch: Batch, precision: Precision) -> list[str]:
    """Return the problems of the batches of an epoch, as far as their sizes are known in advance.

    batch: a tiny one, before the data's `batch_transform`, whose samples are repeated. None are tried of inputs that
    cannot be divided into samples.
    """
    if not batch.is_divisible:
        return []
    whole = training_batch_sizes(data.train, open_stage.stage.training.batch_size) or ()
    # Of several processes, each gets a part of a batch; all of them try the parts of all, so that they end together.
    count = collectives.world_size()
    sizes = sorted({len(shard_rows(torch.arange(size), rank, count)) for size in set(whole) for rank in range(count)})
    try:
        for size in sizes if BatchTransform.from_data(data) is not None else ():
            transformed(data, batch.rows(torch.arange(size) % len(batch)))
        if 1 in sizes and len(batch) > 1 and isinstance(data.train, LoaderSplit):  # other splits leave it out
            _train_on_single(open_stage, transformed(data, batch.rows(torch.arange(1))), precision)
    except KdkitError as error:
        numbers = " or ".join(map(str, sizes))
        remedy = "DataLoader(..., drop_last=True), or a batch_size that divides the number of samples"
        return [f"{error}; the batches of an epoch have {numbers} samples: pass {remedy}"]
    return []


def _train_on_single(open_stage: OpenStage, batch: Batch, precision: Precision) -> None:
    """Raise KdkitError if the networks or losses of a stage fail for a single sample, as batch norm does."""
    module = open_stage.module
    with autocast(precision, batch.labels.device), preserve(module, [module]):
        try:
            module(batch, open_stage.teachers(batch))
        except Exception as error:  # user-defined networks and losses may raise anything
            raise KdkitError(f"a step fails for a batch of a single sample: {first_line(error)}") from error
