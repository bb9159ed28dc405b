"""Weight terms so that their gradients have similar norms, larger for terms that learn slowly (GradNorm)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.errors import RecipeError, describe
from kdkit.recipe.balancing.base import Balancer, Balancing, Scale, TrainedParameters, WeightedSum, contributing_terms
from kdkit.recipe.balancing.gradients import separate_gradients, stack_gradients
from kdkit.recipe.optim import Optimizer
from kdkit.utils.collectives import all_reduce_mean
from kdkit.utils.validation import validate_at_least_zero

_MIN_FACTOR = 1e-3  # without it, an optimizer step could make a factor negative


@dataclass(frozen=True, slots=True, kw_only=True)
class GradNorm(Balancing):
    """Learn a factor per term that drives gradient norms to their mean times (relative inverse training rate) ** alpha.

    The inverse training rate of a term is its loss divided by its first loss, relative to the mean over terms.
    alpha: how much more weight slowly learning terms get; 0 makes the norms equal.
    layer: the module for whose parameters norms are computed, such as the last layer that all terms share; None for all
    trained parameters of the networks.
    optimizer: trains the factors, once per micro-batch. Afterwards they are clamped to be positive and renormalised so
    that their sum is the number of terms.

    Terms are first multiplied by the weights of the objective, but balancing the norms cancels their effect. Losses
    must be above 0: if a ratio is not finite, the factors are not changed. Terms with weight 0 are left out. Needs a
    backward pass down to the layer for each term, in addition to the backward pass of the sum.
    Raises RecipeError for invalid options. Source: Chen et al. 2018, arXiv:1711.02257, Algorithm 1.
    """

    alpha: float = 1.5
    layer: nn.Module | None = None
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(torch.optim.Adam, lr=0.025))

    needs_separate_gradients = True

    def __post_init__(self) -> None:
        validate_at_least_zero("alpha of GradNorm", self.alpha)
        if not isinstance(self.layer, nn.Module | None):
            raise RecipeError(
                "layer of GradNorm must be a module of a net in training, or None for the whole nets; got "
                f"{self.layer!r}"
            )
        if not isinstance(self.optimizer, Optimizer):
            raise RecipeError(
                "optimizer of GradNorm must be a kdkit.Optimizer, such as Optimizer(torch.optim.Adam, lr=...); got "
                f"{describe(self.optimizer)}"
            )

    def build(self, trained: TrainedParameters) -> Balancer:
        """Return the balancer of a stage. Raises RecipeError if the stage trains no parameter of the layer."""
        if self.layer is None:
            return GradNormFactors(self, trained, trained.students)
        trained_ids = {id(parameter) for parameter in trained.students}  # ids, because tensors compare elementwise
        shared = tuple(parameter for parameter in self.layer.parameters() if id(parameter) in trained_ids)
        if not shared:
            raise RecipeError(
                f"GradNorm computes norms for a {type(self.layer).__name__}, but this stage trains no parameter of it; "
                "choose a layer with trained weights of a net in training, or use a separate Training for this stage"
            )
        return GradNormFactors(self, trained, shared)


class GradNormFactors(Balancer):
    """The balancer of `GradNorm`, with the factor of each term, (terms,), and its first loss."""

    def __init__(self, options: GradNorm, trained: TrainedParameters, shared: tuple[nn.Parameter, ...]) -> None:
        self._alpha = options.alpha
        self._labels = trained.labels
        self._shared = shared
        self.factors = nn.Parameter(trained.vector(1.0))
        self.first_losses = trained.vector(math.nan)  # NaN until the first loss of a term
        self._optimizer = options.optimizer.build([("factors", self.factors)])
        self._indices: dict[tuple[str, ...], Tensor] = {}

    def __call__(self, terms: Mapping[str, Tensor], weights: Mapping[str, float], scale: Scale) -> None:
        """Add the gradients of the sum of the terms times their factors, and update the factors for the next step."""
        weighted = contributing_terms(terms, weights, scale)
        if len(weighted) < 2:
            WeightedSum()(terms, weights, scale)
            return
        gradients = separate_gradients(list(weighted.values()), self._shared, retain_graph=True)
        for label, term_gradients in zip(weighted, gradients, strict=True):
            if all(gradient is None for gradient in term_gradients):
                raise RecipeError(
                    f"term {label!r} does not reach the layer for which GradNorm computes norms; choose a layer that "
                    "all terms go through, or leave out layer=... for the whole nets"
                )
        indices = self._indices_of(tuple(weighted))
        factors = self.factors.detach()[indices]  # (terms of this step,)
        total = (torch.stack(list(weighted.values())) * factors).sum()
        total.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        norms = stack_gradients(gradients, self._shared).norm(dim=1) / scale(torch.ones_like(factors[0]))
        losses = torch.stack([terms[label].detach() for label in weighted])
        self._update_factors(indices, norms.to(factors), all_reduce_mean(losses.to(factors)))

    def _indices_of(self, labels: tuple[str, ...]) -> Tensor:
        """Return the indices of these terms, (terms,). Cached, because a copy to the device waits for it."""
        if labels not in self._indices:
            indices = [self._labels.index(label) for label in labels]
            self._indices[labels] = torch.tensor(indices, device=self.factors.device)
        return self._indices[labels]

    @torch.no_grad()
    def _update_factors(self, indices: Tensor, norms: Tensor, losses: Tensor) -> None:
        """Take an optimizer step on sum |G - mean(G) * r ** alpha| with a constant target (equation 2).

        norms, losses: (terms,), of the unscaled terms.
        """
        before = self.factors.detach().clone()
        first, usable = self.first_losses[indices], (losses > 0) & losses.isfinite()
        first = torch.where(first.isnan() & usable, losses, first)
        self.first_losses[indices] = first
        ratios = losses / first
        weighted_norms = before[indices] * norms  # G in the paper
        target = weighted_norms.mean() * (ratios / ratios.mean()) ** self._alpha
        # torch.where instead of `if`, so that steps do not wait for the device.
        is_finite = (norms.isfinite() & target.isfinite()).all()
        gradient = torch.zeros_like(before)
        gradient[indices] = torch.where(is_finite, (weighted_norms - target).sign() * norms, 0.0)
        self.factors.grad = gradient
        self._optimizer.step()
        stepped = self.factors[indices].clamp(min=_MIN_FACTOR)
        stepped = stepped * (len(indices) / stepped.sum())
        after = before.clone()  # an optimizer with momentum also changes the factors of terms that are left out
        after[indices] = torch.where(is_finite, stepped, before[indices])
        self.factors.copy_(after)

    def state_dict(self) -> dict[str, Any]:
        """Return the factors, the first losses, and the state of the optimizer."""
        return {
            "factors": self.factors.detach().clone(),
            "first": self.first_losses.clone(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Load a saved state."""
        self.factors.data.copy_(state["factors"])
        self.first_losses.copy_(state["first"])
        self._optimizer.load_state_dict(state["optimizer"])
