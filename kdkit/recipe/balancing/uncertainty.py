"""Weight terms by their learned homoscedastic uncertainty."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn

from kdkit.recipe.balancing.base import Balancer, Balancing, Scale, TrainedParameters, WeightedSum, contributing_terms
from kdkit.utils.collectives import all_reduce_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class UncertaintyWeighting(Balancing):
    """Minimise the sum of exp(-s) * term + s / 2 over the terms, with a learned log variance s per term, initially 0.

    Terms are regarded as negative log-likelihoods, so they must stay above 0; for a squared error, use half of it.
    Terms are first multiplied by the weights of the objective. These only affect the start of learning, because s
    converges to log(2 * weight * term). A term with weight 0 has no effect, and a single term is not weighted. The
    optimizer of the stage trains the log variances, under the name "balance.log_variances".
    Source: Kendall et al. 2018, arXiv:1705.07115, section 3.2.
    """

    def build(self, trained: TrainedParameters) -> Balancer:
        """Return the balancer of a stage."""
        return LogVariances(trained) if len(trained.labels) > 1 else WeightedSum()


class LogVariances(nn.Module):
    """The balancer of `UncertaintyWeighting`, with the log variance of each term, (terms,)."""

    averages_across_ranks = False
    capturable = True

    def __init__(self, trained: TrainedParameters) -> None:
        super().__init__()
        self._indices = {label: index for index, label in enumerate(trained.labels)}
        self.log_variances = nn.Parameter(trained.vector(0.0))

    def forward(self, terms: Mapping[str, Tensor], weights: Mapping[str, float], scale: Scale) -> None:
        """Add the gradients of the terms and of their log variances."""
        weighted = contributing_terms(terms, weights, lambda term: term)
        if not weighted:
            WeightedSum()(terms, weights, scale)
            return
        logs = {label: self.log_variances[self._indices[label]] for label in weighted}
        total = reduce(add, (torch.exp(-logs[label]) * term + logs[label] / 2 for label, term in weighted.items()))
        scale(total).backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        # DistributedDataParallel wraps only the networks, so it does not average the gradients of the log variances.
        if self.log_variances.grad is not None:
            self.log_variances.grad = all_reduce_mean(self.log_variances.grad)
