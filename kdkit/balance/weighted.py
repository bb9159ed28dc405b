"""Learn from the plain weighted sum of the terms."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from torch import Tensor

from kdkit.balance.balancer import Scale, Trained


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """The plain weighted sum of the terms, as the goal says."""

    def build(self, trained: Trained) -> "WeightedSum":
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
