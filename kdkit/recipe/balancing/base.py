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
    """What a stage trains: the labels of its terms, the parameters of each net, and those of losses.

    A parameter stands in one place only: that of two nets with the first of them, that of a net and a loss with the
    net.
    """

    labels: tuple[str, ...]
    nets: tuple[tuple[nn.Parameter, ...], ...]
    losses: tuple[nn.Parameter, ...] = ()

    @property
    def students(self) -> tuple[nn.Parameter, ...]:
        """The parameters of all nets."""
        return tuple(each for net in self.nets for each in net)

    def vector(self, value: float) -> Tensor:
        """Return this value for each term, (terms,), where the nets are, in float32 or better."""
        first = self.students[0]
        dtype = torch.promote_types(first.dtype, torch.float32)
        return torch.full((len(self.labels),), value, device=first.device, dtype=dtype)


@runtime_checkable
class Balancer(Protocol):
    """Sets the gradients of a step. What it learns or remembers is in its state dict.

    One that is an `nn.Module` has its parameters trained by the optimizer of the stage, under names that begin with
    "balance.". In several processes gradients are averaged as a backward pass leaves them; one that does without such a
    pass averages them itself (`kdkit.utils.collectives.averaged`) and has `averages = True`.
    """

    def __call__(self, terms: Mapping[str, Tensor], weights: Mapping[str, float], scale: Scale) -> None:
        """Add gradients to those that are there, from unweighted terms, their weights, and `scale`.

        scale: multiplies what is differentiated, for half precision and accumulation.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what it has learned, in tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Go on from what it had learned."""
        ...


@runtime_checkable
class Balancing(Protocol):
    """A way of balancing as a recipe says it; one object may serve several stages.

    One that differentiates each term apart has `each_gradient = True`, and is refused in a run that compiles.
    """

    def build(self, trained: TrainedParameters) -> Balancer:
        """Return the balancer of a stage. Raises RecipeError where it does not fit what the stage trains."""
        ...


def weighted_terms(terms: Mapping[str, Tensor], weights: Mapping[str, float], scale: Scale) -> dict[str, Tensor]:
    """Return the weighted, scaled terms that have a say in this step: of another weight than 0, and with a graph."""
    return {
        label: scale(term * weights[label])
        for label, term in terms.items()
        if weights[label] != 0 and term.requires_grad
    }


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """The plain weighted sum of the terms, as the goal says."""

    def build(self, trained: TrainedParameters) -> "WeightedSum":
        """Return itself: there is nothing to learn."""
        return self

    def __call__(self, terms: Mapping[str, Tensor], weights: Mapping[str, float], scale: Scale) -> None:
        """Add the gradients of the weighted sum."""
        total = reduce(add, [term * weights[label] for label, term in terms.items()])
        scale(total).backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped

    def state_dict(self) -> dict[str, Any]:
        """Nothing is learned."""
        return {}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Nothing is learned."""
