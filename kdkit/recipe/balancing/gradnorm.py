"""Weigh terms so that their gradients have like norms, and those that learn slowly more (GradNorm)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.errors import RecipeError
from kdkit.recipe.balancing.base import Balancer, Scale, TrainedParameters, WeightedSum, weighted_terms
from kdkit.recipe.balancing.gradients import each_gradient, rows
from kdkit.recipe.optim import Optimizer
from kdkit.utils.collectives import all_reduce_mean

_LEAST = 1e-3  # the least factor, which an optimizer's step could otherwise take below 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GradNorm:
    """Learn a factor for each term, so that norms of gradients go to their mean times (relative slowness) ** alpha.

    alpha: how much more a term counts that learns slowly, its slowness being its loss over its first one, relative to
    the mean over terms. layer: where norms are taken, such as the last layer that all terms share; all trained
    parameters of the nets where None. optimizer: of the factors, which are kept above 0 and renormalised to their count
    after each of its steps, one a micro-batch.

    Goal weights multiply the terms before, so they are undone as norms are balanced. Losses have to be above 0: where a
    ratio is not finite, factors stay as they are. Terms of weight 0 are left out. Costs a backward pass for each term,
    down to the layer, beside that of the sum. Source: Chen et al. 2018, arXiv:1711.02257, Algorithm 1.
    """

    alpha: float = 1.5
    layer: nn.Module | None = None
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(torch.optim.Adam, lr=0.025))

    each_gradient = True

    def __post_init__(self) -> None:
        number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool)
        if not number or not math.isfinite(self.alpha) or self.alpha < 0:
            raise RecipeError(f"alpha of GradNorm is a number of at least 0; got {self.alpha!r}")
        if not isinstance(self.layer, nn.Module | None):
            raise RecipeError(
                f"layer of GradNorm is a module of a net in training, or None for the whole nets; got {self.layer!r}"
            )
        if not isinstance(self.optimizer, Optimizer):
            raise RecipeError(f"optimizer is Optimizer(torch.optim.Adam, lr=...) or the like; got {self.optimizer!r}")

    def build(self, trained: TrainedParameters) -> Balancer:
        """Return it at work. Raises RecipeError for a layer of which the stage trains nothing."""
        return Factors(self, trained, self._shared(trained))

    def _shared(self, trained: TrainedParameters) -> tuple[nn.Parameter, ...]:
        if self.layer is None:
            return trained.students
        known = {id(each) for each in trained.students}
        shared = tuple(each for each in self.layer.parameters() if id(each) in known)
        if not shared:
            raise RecipeError(
                f"GradNorm takes norms on a {type(self.layer).__name__} of which this stage trains nothing; choose a "
                "layer of a net in training that has weights to train, or give this stage a Training of its own"
            )
        return shared


class Factors:
    """The factor of each term, (terms,), with the losses that ratios are taken to."""

    def __init__(self, options: GradNorm, trained: TrainedParameters, shared: tuple[nn.Parameter, ...]) -> None:
        self._alpha = options.alpha
        self._labels = trained.labels
        self._shared = shared
        self.factors = nn.Parameter(trained.vector(1.0))
        self.first = trained.vector(math.nan)
        self._optimizer = options.optimizer.build([("factors", self.factors)])
        self._known: dict[tuple[str, ...], Tensor] = {}

    def __call__(self, terms: Mapping[str, Tensor], weights: Mapping[str, float], scale: Scale) -> None:
        """Add the gradients of the sum with factors, and set the factors for the next time."""
        weighted = weighted_terms(terms, weights, scale)
        if len(weighted) < 2:
            WeightedSum()(terms, weights, scale)
            return
        found = each_gradient(list(weighted.values()), self._shared, keep=True)
        for label, each in zip(weighted, found, strict=True):
            if all(one is None for one in each):
                raise RecipeError(
                    f"term {label!r} does not reach the layer that GradNorm takes norms on; choose one that all terms "
                    "go through, or leave out layer=... for the whole nets"
                )
        places = self._places(tuple(weighted))
        now = self.factors.detach()[places]
        total = (torch.stack(list(weighted.values())) * now).sum()
        total.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        norms = rows(found, self._shared).norm(dim=1) / scale(torch.ones_like(now[0]))
        losses = torch.stack([terms[label].detach() for label in weighted])
        self._learn(places, norms.to(now), all_reduce_mean(losses.to(now)))

    def _places(self, labels: tuple[str, ...]) -> Tensor:
        """Return where these terms stand, (terms,), brought to the device once: that has to wait for it."""
        if labels not in self._known:
            places = [self._labels.index(label) for label in labels]
            self._known[labels] = torch.tensor(places, device=self.factors.device)
        return self._known[labels]

    @torch.no_grad()
    def _learn(self, places: Tensor, norms: Tensor, losses: Tensor) -> None:
        """Take a step towards sum |G - mean(G) * r ** alpha| = 0, the target held still (equation 2)."""
        before = self.factors.detach().clone()
        first, usable = self.first[places], (losses > 0) & losses.isfinite()
        first = torch.where(first.isnan() & usable, losses, first)
        self.first[places] = first
        ratios = losses / first
        mine = before[places] * norms
        target = mine.mean() * (ratios / ratios.mean()) ** self._alpha
        sound = (norms.isfinite() & target.isfinite()).all()
        slope = torch.zeros_like(before)
        slope[places] = torch.where(sound, (mine - target).sign() * norms, 0.0)
        self.factors.grad = slope
        self._optimizer.step()
        on_step = self.factors[places].clamp(min=_LEAST)
        on_step = on_step * (len(places) / on_step.sum())
        after = before.clone()
        after[places] = torch.where(sound, on_step, before[places])
        self.factors.copy_(after)

    def state_dict(self) -> dict[str, Any]:
        """Return the factors, the first losses, and where the optimizer stands."""
        return {
            "factors": self.factors.detach().clone(),
            "first": self.first.clone(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from these."""
        self.factors.data.copy_(state["factors"])
        self.first.copy_(state["first"])
        self._optimizer.load_state_dict(state["optimizer"])
