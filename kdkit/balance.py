"""Turn the terms of a step into gradients."""

from collections.abc import Callable, Mapping
from functools import reduce
from operator import add
from typing import Any, Protocol

from torch import Tensor


class Balancer(Protocol):
    """Sets the gradients of a step. What it learns or remembers is in its state dict."""

    def __call__(
        self, terms: Mapping[str, Tensor], weights: Mapping[str, float], scale: Callable[[Tensor], Tensor]
    ) -> None:
        """Set gradients from unweighted terms, their weights, and `scale` (half precision, accumulation)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what it has learned."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what it had learned."""
        ...


class WeightedSum:
    """The plain weighted sum of the terms, as the goal says."""

    def __call__(
        self, terms: Mapping[str, Tensor], weights: Mapping[str, float], scale: Callable[[Tensor], Tensor]
    ) -> None:
        """Set the gradients of the weighted sum."""
        total = reduce(add, (term * weights[label] for label, term in terms.items()))
        scale(total).backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped

    def state_dict(self) -> dict[str, Any]:
        """Nothing is learned."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is learned."""
