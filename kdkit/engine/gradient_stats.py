"""Figures of gradients: how large that of each term is, and how far each two terms agree."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from kdkit.recipe.balancing import inner_products, jacobian

Gradients = dict[str, dict[str, float]]


class GradientFigures:
    """The norms of the weighted terms' gradients on the nets in training, and their cosines, as means of an epoch.

    every: updates from one that is looked at to the next. The gradient of an update is the mean over its micro-batches.
    A figure that is not finite is left out of the mean, such as the cosine of a term whose gradient is 0.
    """

    def __init__(self, every: int, labels: Sequence[str], parameters: Sequence[nn.Parameter]) -> None:
        self._every = every
        self._labels = tuple(labels)
        self._parameters = tuple(parameters)
        self._gathered: tuple[Tensor, Tensor] | None = None
        self._sums: Tensor | None = None
        self._counts: Tensor | None = None

    def due(self, update: int) -> bool:
        """Whether this update, counted from 0, is looked at."""
        return update % self._every == 0

    def add(self, terms: Mapping[str, Tensor], weights: Mapping[str, float], scale: Callable[[Tensor], Tensor]) -> None:
        """Add the gradients of a micro-batch, and keep its graph; `scale` as a balancer is given it."""
        weighted = [scale(terms[label] * weights[label]) for label in self._labels]
        gradients = jacobian(weighted, self._parameters, retain_graph=True)
        factor = scale(torch.ones((), device=gradients.device))
        if self._gathered is not None:
            gradients, factor = self._gathered[0] + gradients, self._gathered[1] + factor
        self._gathered = gradients, factor

    def close(self) -> None:
        """Take the figures of what was added since the last update, if anything was."""
        if self._gathered is None:
            return
        gradients, factor = self._gathered
        self._gathered = None
        norms, cosines = norms_and_cosines(gradients)
        figures = torch.cat([norms / factor, cosines]).double()
        finite = figures.isfinite()
        figures = figures.where(finite, 0.0)
        self._sums = figures if self._sums is None else self._sums + figures
        self._counts = finite.double() if self._counts is None else self._counts + finite

    def take(self) -> Gradients | None:
        """Return the means since the last time, None where nothing was looked at."""
        if self._sums is None or self._counts is None:
            return None
        means = (self._sums / self._counts).tolist()
        self._sums = self._counts = None
        pairs = [f"{one} | {other}" for one, other in combinations(self._labels, 2)]
        count = len(self._labels)
        return {
            "norms": dict(zip(self._labels, means[:count], strict=True)),
            "cosines": dict(zip(pairs, means[count:], strict=True)),
        }


def norms_and_cosines(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Return the norm of each row, (terms,), and the cosine of each two, (pairs,), of gradients (terms, numbers)."""
    norms = gradients.norm(dim=1)
    cosines = inner_products(gradients) / norms.outer(norms)
    first, second = torch.triu_indices(len(norms), len(norms), 1, device=norms.device)
    return norms, cosines[first, second].clamp(-1, 1)
