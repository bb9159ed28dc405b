"""The interface of loss balancing, and the weighted sum."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce
from operator import add
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Scale = Callable[[Tensor], Tensor]


def unscaled(loss: Tensor) -> Tensor:
    """Return a loss unchanged: the scale of a step in full precision whose gradients are not accumulated."""
    return loss


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedParameters:
    """The trained parameters of a stage, with the labels of its terms.

    labels: the labels of the terms, in order. nets: the parameters of each network. losses: the parameters of losses.
    Each parameter is listed once. If two networks share it, it is listed with the first one; if a network and a loss
    share it, with the network.
    """

    labels: tuple[str, ...]
    nets: tuple[tuple[nn.Parameter, ...], ...]
    losses: tuple[nn.Parameter, ...] = ()

    @property
    def students(self) -> tuple[nn.Parameter, ...]:
        """The parameters of all networks."""
        return tuple(parameter for net in self.nets for parameter in net)

    def vector(self, value: float) -> Tensor:
        """Return a tensor with this value for each term, (terms,), on the device of the networks."""
        first = self.students[0]
        dtype = torch.promote_types(first.dtype.to_real(), torch.float32)  # half precision is too coarse for factors
        return torch.full((len(self.labels),), value, device=first.device, dtype=dtype)


@runtime_checkable
class Balancer(Protocol):
    """Base class of a balancer, which computes the gradients of a step from the terms. It is used for one stage.

    If it is an `nn.Module`, the optimizer of the stage trains its parameters, under names that start with "balance.".

    averages_across_ranks: in a distributed run, DistributedDataParallel averages gradients during a backward pass
    through the loss. A balancer without such a pass must average them itself, with
    `kdkit.utils.collectives.all_reduce_mean`, and set this to True.
    capturable: whether a call may be captured as part of a CUDA graph, which repeats its kernels without running its
    Python code. The call must then compute on the device only, and must not store numbers or draw random numbers in
    Python.
    """

    averages_across_ranks: bool = False
    capturable: bool = False

    def __call__(self, terms: Mapping[str, Tensor], weights: Mapping[str, float], scale: Scale) -> None:
        """Add gradients to the `.grad` of the parameters. terms: the unweighted terms. weights: their weights.

        scale: multiplies a loss before the backward pass, for half precision and gradient accumulation.
        """
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """Return the learned state, as tensors and plain values; by default, there is none."""
        return {}

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Load a learned state, to resume from it."""
        return None


@runtime_checkable
class Balancing(Protocol):
    """Base class of a balancing method, as configured in a recipe. One object may be used for several stages.

    needs_separate_gradients: whether its balancer differentiates each term separately. A compiled stage has a single
    backward pass for all terms, so a compiled run does not accept such a method.
    """

    needs_separate_gradients: bool = False

    def build(self, trained: TrainedParameters) -> Balancer:
        """Return the balancer of a stage. Raises RecipeError if the method does not fit the trained parameters."""
        ...


def contributing_terms(terms: Mapping[str, Tensor], weights: Mapping[str, float], scale: Scale) -> dict[str, Tensor]:
    """Return the weighted and scaled terms that contribute gradients: those with a nonzero weight and a graph."""
    return {
        label: scale(term * weights[label])
        for label, term in terms.items()
        if weights[label] != 0 and term.requires_grad
    }


@dataclass(frozen=True, slots=True)
class WeightedSum(Balancing, Balancer):
    """The weighted sum of the terms, with the weights of the objective."""

    capturable = True  # even if weights are scalar tensors

    def build(self, trained: TrainedParameters) -> "WeightedSum":
        """Return self, which has no state."""
        return self

    def __call__(self, terms: Mapping[str, Tensor], weights: Mapping[str, float], scale: Scale) -> None:
        """Add the gradients of the weighted sum."""
        trained = {label: term for label, term in terms.items() if term.requires_grad}
        if scale is unscaled and trained:
            # The sum is not computed: in a small step, its products and their gradients would take much of the time.
            gradients = [_gradient_of_sum(weights[label], term) for label, term in trained.items()]
            torch.autograd.backward([*trained.values()], gradients)
            return
        total = reduce(add, [term * weights[label] for label, term in terms.items()])
        scale(total).backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped


def _gradient_of_sum(weight: float | Tensor, term: Tensor) -> Tensor:
    """Return the gradient of the weighted sum with respect to a term: its weight, a scalar in the dtype of the term."""
    if isinstance(weight, Tensor):
        return weight.to(term.dtype)
    if term.is_cuda and torch.cuda.is_current_stream_capturing():
        return torch.full_like(term, weight)  # a graph must own all tensors that it reads
    return _scalar(weight, term.dtype, term.device)


@lru_cache
def _scalar(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((), value, dtype=dtype, device=device)  # unlike torch.tensor, does not wait for the device
