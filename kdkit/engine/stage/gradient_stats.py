"""Gradient statistics: the norm of each term's gradient, and the cosine between each pair."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.recipe.balancing.gradients import inner_products, jacobian
from kdkit.utils.devices import widest_float

Gradients = dict[str, dict[str, float]]


class GradientStats:
    """Means over an epoch of the gradient norms and cosines of the weighted terms, for the networks in training.

    every: record every n-th update, starting with the first. The gradient of an update is the mean over its
    micro-batches. Values that are not finite, such as the cosine of a zero gradient, are left out of the means.
    """

    def __init__(self, every: int, labels: Sequence[str], parameters: Sequence[nn.Parameter]) -> None:
        self._every = every
        self._labels = tuple(labels)
        self._parameters = tuple(parameters)
        self._accumulated: tuple[Tensor, Tensor] | None = None  # gradients and scale of the current update
        self._sums: Tensor | None = None
        self._counts: Tensor | None = None

    def due(self, update: int) -> bool:
        """Whether this update, counted from 0, is recorded."""
        return update % self._every == 0

    def add(self, terms: Mapping[str, Tensor], weights: Mapping[str, float], scale: Callable[[Tensor], Tensor]) -> None:
        """Add the gradients of a micro-batch, and retain the graph for the balancer.

        scale: the function that a balancer applies to a loss before its backward pass.
        """
        weighted = [scale(terms[label] * weights[label]) for label in self._labels]
        gradients = jacobian(weighted, self._parameters, retain_graph=True)  # (terms, parameters)
        factor = scale(torch.ones((), device=gradients.device))
        if self._accumulated is not None:
            gradients, factor = self._accumulated[0] + gradients, self._accumulated[1] + factor
        self._accumulated = gradients, factor

    def close(self) -> None:
        """Record the statistics of the current update if its gradients were added."""
        if self._accumulated is None:
            return
        gradients, factor = self._accumulated
        self._accumulated = None
        norms, cosines = norms_and_cosines(gradients)
        # Norms are divided by the scale of half precision and accumulation. Cosines do not depend on it.
        values = torch.cat([norms / factor, cosines]).to(widest_float(norms.device))
        finite = values.isfinite()
        values = values.where(finite, 0.0)
        self._sums = values if self._sums is None else self._sums + values
        self._counts = finite.to(values.dtype) if self._counts is None else self._counts + finite

    def state_dict(self) -> dict[str, Any]:
        """Return the sums since the last call of `take`."""
        return {"sums": self._sums, "counts": self._counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state."""
        device = self._parameters[0].device
        self._sums, self._counts = (None if state[key] is None else state[key].to(device) for key in ("sums", "counts"))

    def take(self) -> Gradients | None:
        """Return the means since the last call, or None if nothing was recorded."""
        if self._sums is None or self._counts is None:
            return None
        means = (self._sums / self._counts).tolist()
        self._sums = self._counts = None
        pairs = [f"{first} | {second}" for first, second in combinations(self._labels, 2)]
        count = len(self._labels)
        return {
            "norms": dict(zip(self._labels, means[:count], strict=True)),
            "cosines": dict(zip(pairs, means[count:], strict=True)),
        }


def norms_and_cosines(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Return the norm of each row and the cosine of each pair of rows: (terms, n) -> (terms,) and (pairs,)."""
    norms = gradients.norm(dim=1)
    cosines = inner_products(gradients) / norms.outer(norms)
    first, second = torch.triu_indices(len(norms), len(norms), 1, device=norms.device)
    return norms, cosines[first, second].clamp(-1, 1)
