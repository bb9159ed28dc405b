"""Train on several ranks: divide each batch among them, and average their gradients."""

import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdkit.data.dataset import Data, LoaderSplit
from kdkit.errors import DataError, RecipeError
from kdkit.utils import collectives

# A warning of DistributedDataParallel since torch 2.14, by its text; the replacement is not in torch 2.10.
_OLD_NAME = "`broadcast_buffers` is deprecated"
_NO_CONTEXT = nullcontext()


def require_divisible(data: Data, batch_sizes: Iterable[int]) -> None:
    """Raise DataError or RecipeError if the batches of a run cannot be divided among its ranks."""
    if not collectives.is_distributed():
        return
    ranks = collectives.world_size()
    if any(isinstance(split, LoaderSplit) for split in (data.train, data.validation, data.test)):
        raise DataError(
            f"{ranks} processes divide the rows of a split, but a user-defined DataLoader has its own order; pass its "
            "Dataset instead, or a Dataset with rows instead of a stream"
        )
    smallest = min(batch_sizes)
    if smallest < 2 * ranks:
        raise RecipeError(
            f"a batch of {smallest} cannot be divided among {ranks} processes, because each needs at least two samples "
            "for batch norm; use fewer processes or a larger batch_size"
        )


class DistributedModule:
    """The module of a stage as the training loop calls it: compiled if requested, with gradients averaged over ranks.

    On a single rank, and for a balancer that averages gradients itself, there is no DistributedDataParallel.
    """

    def __init__(self, module: nn.Module, *, averages: bool, compiled: bool) -> None:
        self._parallel: DistributedDataParallel | None = None
        collectives.sync_buffers([module])
        if collectives.is_distributed() and averages:
            collectives.sync_module(module, next(module.parameters()).device)
        elif collectives.is_distributed():
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", _OLD_NAME)
                # A term whose weight is 0, or that has no label in this batch, reaches no parameter: some may be
                # unused.
                self._parallel = DistributedDataParallel(
                    _WithUnused(module), broadcast_buffers=False, find_unused_parameters=True
                )
        self._forward: Callable[..., Any] = module if self._parallel is None else self._parallel
        if compiled:
            self._forward = torch.compile(self._forward)
            # A tap in a module that recomputes its activations would otherwise break the graph there.
            options = torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True)
            self._forward = options(self._forward)

    def __call__(self, *inputs: Any) -> dict[str, Tensor]:
        """Return the terms by label."""
        terms: dict[str, Tensor] = self._forward(*inputs)
        return terms

    def update(self, *, ends: bool) -> AbstractContextManager[Any]:
        """Return the context of a micro-batch: only in the last one of an update are gradients averaged over ranks."""
        return _NO_CONTEXT if ends or self._parallel is None else self._parallel.no_sync()


class _WithUnused(nn.Module):
    """A module with a parameter that is never used: if all are, DistributedDataParallel prints a warning from C++."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        trained = next(parameter for parameter in module.parameters() if parameter.requires_grad)
        self.unused = nn.Parameter(trained.new_zeros(()))

    def forward(self, *inputs: Any) -> Any:
        """Call the module."""
        return self.module(*inputs)


def rank_share(samples: int, whole: int | None) -> tuple[float, float]:
    """Return the weight of this rank's part of a batch, and the number of samples that its losses stand for.

    The weight is that of the mean over the part in the mean over ranks: 1 if each rank has the whole batch, or parts
    are equal. whole: the size of the batch, which is known if several ranks divide it.
    """
    ranks = collectives.world_size()
    if ranks == 1 or whole is None:
        return 1.0, samples
    weight = 1.0 if samples == whole else samples * ranks / whole
    return weight, whole * weight / ranks
