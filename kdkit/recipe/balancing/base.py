"""The interface of loss balancing, and the weighted sum."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Scale = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedParameters:
    """The trained parameters of a stage, with the labels of its terms.

    labels: of the terms, in order. nets: the parameters of each net. losses: the parameters of the losses.
    Each parameter is listed once: one that two nets share with the first of them, one of a net and a loss with the net.
    """

    labels: tuple[str, ...]
    nets: tuple[tuple[nn.Parameter, ...], ...]
    losses: tuple[nn.Parameter, ...] = ()

    @property
    def students(self) -> tuple[nn.Parameter, ...]:
        """The parameters of all nets."""
        return tuple(parameter for net in self.nets for parameter in net)

    def vector(self, value: float) -> Tensor:
        """Return a tensor of this value for each term, (terms,), on the device of the nets."""
        first = self.students[0]
        dtype = torch.promote_types(first.dtype, torch.float32)  # half precision is too coarse for factors
        return torch.full((len(self.labels),), value, device=first.device, dtype=dtype)


@runtime_checkable
class Balancer(Protocol):
    """Base class of a balancer, which computes the gradients of a step from the terms. It serves one stage.

    If it is an `nn.Module`, the optimizer of the stage trains its parameters, under names that begin with "balance.".

    averages_across_ranks: in a distributed run, DistributedDataParallel averages the gradients during a backward pass
    through the loss. A balancer without such a pass averages them itself, with
    `kdkit.utils.collectives.all_reduce_mean`, and sets this to True.
    capturable: whether a call may be captured as a part of a CUDA graph, which repeats its kernels without running its
    Python code again: it computes on the device only, and keeps no number and draws no random number in Python.
    """

    averages_across_ranks: bool = False
    capturable: bool = False

    def __call__(self, terms: Mapping[str, Tensor], weights: Mapping[str, float], scale: Scale) -> None:
        """Add gradients to the `.grad` of the parameters, given the unweighted terms and their weights.

        scale: multiplies a loss before it is differentiated, for half precision and gradient accumulation.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the learned state, as tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Load a learned state, to resume from it."""
        ...


@runtime_checkable
class Balancing(Protocol):
    """Base class of a balancing method as a recipe configures it. One object may serve several stages.

    needs_separate_gradients: whether its balancer differentiates each term separately. A compiled stage has one
    backward pass for all terms, so a run that compiles refuses such a method.
    """

    needs_separate_gradients: bool = False

    def build(self, trained: TrainedParameters) -> Balancer:
        """Return the balancer of a stage. Raises RecipeError if the method does not fit the trained parameters."""
        ...


def weighted_terms(terms: Mapping[str, Tensor], weights: Mapping[str, float], scale: Scale) -> dict[str, Tensor]:
    """Return the weighted and scaled terms that contribute gradients: of nonzero weight, and with a graph."""
    return {
        label: scale(term * weights[label])
        for label, term in terms.items()
        if weights[label] != 0 and term.requires_grad
    }


@dataclass(frozen=True, slots=True)
class WeightedSum(Balancing, Balancer):
    """The weighted sum of the terms, with the weights of the objective."""

    capturable = True  # also if weights are scalar tensors

    def build(self, trained: TrainedParameters) -> "WeightedSum":
        """Return self, which has no state."""
        return self

    def __call__(self, terms: Mapping[str, Tensor], weights: Mapping[str, float], scale: Scale) -> None:
        """Add the gradients of the weighted sum."""
        total = reduce(add, [term * weights[label] for label, term in terms.items()])
        scale(total).backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict, since there is no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Do nothing, since there is no state."""
