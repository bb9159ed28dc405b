"""Weigh terms by how uncertain each is, which is learned (homoscedastic uncertainty)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn

from kdkit.recipe.balancing.base import Balancer, Scale, TrainedParameters, WeightedSum, weighted_terms
from kdkit.utils.collectives import all_reduce_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class UncertaintyWeighting:
    """The sum of exp(-s) * term + s / 2 over the terms, each s = log variance learned and at first 0.

    Terms are taken as negative log-likelihoods, so they have to stay above 0; a squared error is one at half its value.
    Goal weights multiply the terms before, so what they fix is where learning starts: s goes to log(2 * weight * term).
    A term has no say while its weight is 0; the one term of a stage is not weighed. The stage's optimizer trains the
    log variances, under the name "balance.log_variances". Source: Kendall et al. 2018, arXiv:1705.07115, section 3.2.
    """

    def build(self, trained: TrainedParameters) -> Balancer:
        """Return it at work."""
        return LogVariances(trained) if len(trained.labels) > 1 else WeightedSum()


class LogVariances(nn.Module):
    """The log variance of each term, (terms,)."""

    def __init__(self, trained: TrainedParameters) -> None:
        super().__init__()
        self._places = {label: place for place, label in enumerate(trained.labels)}
        self.log_variances = nn.Parameter(trained.vector(0.0))

    def forward(self, terms: Mapping[str, Tensor], weights: Mapping[str, float], scale: Scale) -> None:
        """Add the gradients of the terms and of their log variances."""
        weighted = weighted_terms(terms, weights, lambda term: term)
        if not weighted:
            WeightedSum()(terms, weights, scale)
            return
        logs = {label: self.log_variances[self._places[label]] for label in weighted}
        total = reduce(add, (torch.exp(-logs[label]) * term + logs[label] / 2 for label, term in weighted.items()))
        scale(total).backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        if self.log_variances.grad is not None:
            self.log_variances.grad = all_reduce_mean(self.log_variances.grad)
