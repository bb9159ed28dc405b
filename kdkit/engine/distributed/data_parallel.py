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

# The text of a warning of DistributedDataParallel since torch 2.14; the replacement does not exist in torch 2.10.
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
            "Dataset instead, or for a stream a Dataset with rows"
        )
    smallest = min(batch_sizes)
    if smallest < 2 * ranks:
        raise RecipeError(
            f"a batch of {smallest} samples cannot be divided among {ranks} processes, because each needs at least two "
            "samples for batch norm; use fewer processes or a larger batch_size"
        )


class DistributedModule:
    """The module of a stage as the training loop calls it: compiled if requested, with gradients averaged over ranks.

    DistributedDataParallel is not used on a single rank, or if the balancer averages gradients itself (`averages`).
    """

    def __init__(self, module: nn.Module, *, averages: bool, compiled: bool) -> None:
        self._parallel: DistributedDataParallel | None = None
        collectives.sync_buffers([module])
        if collectives.is_distributed() and averages:
            collectives.sync_module(module, next(module.parameters()).device)
        elif collectives.is_distributed():
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", _OLD_NAME)
                # Some parameters may be unused: a term with weight 0, or without labels in this batch, reaches none.
                self._parallel = DistributedDataParallel(
                    _WithUnused(module), broadcast_buffers=False, find_unused_parameters=True
                )
        self._forward: Callable[..., Any] = module if self._parallel is None else self._parallel
        if compiled:
            self._forward = torch.compile(self._forward)
            # Otherwise, a tap in a module that recomputes its activations would break the graph.
            options = torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True)
            self._forward = options(self._forward)

    def __call__(self, *inputs: Any) -> dict[str, Tensor]:
        """Return the terms by label."""
        terms: dict[str, Tensor] = self._forward(*inputs)
        return terms

    def update(self, *, ends: bool) -> AbstractContextManager[Any]:
        """Return the context of a micro-batch. Gradients are averaged over ranks only in the last one of an update."""
        return _NO_CONTEXT if ends or self._parallel is None else self._parallel.no_sync()


class _WithUnused(nn.Module):
    """A module with an unused parameter: if all are used, DistributedDataParallel prints a warning from C++."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        trained = next(parameter for parameter in module.parameters() if parameter.requires_grad)
        self.unused = nn.Parameter(trained.new_zeros(()))

    def forward(self, *inputs: Any) -> Any:
        """Call the module."""
        return self.module(*inputs)


def rank_share(samples: int, whole: int | None) -> tuple[float, float]:
    """Return the weight of this rank's part of a batch, and the number of samples that its losses represent.

    The weight is the factor of this rank's mean loss in the mean over ranks: 1 if each rank has the whole batch, or if
    all parts have the same size. whole: the size of the batch, which is known if several ranks divide it.
    """
    ranks = collectives.world_size()
    if ranks == 1 or whole is None:
        return 1.0, samples
    weight = 1.0 if samples == whole else samples * ranks / whole
    return weight, whole * weight / ranks
