"""Gradient surgery: PCGrad and CAGrad."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdkit.errors import RecipeError
from kdkit.recipe.balancing.base import Balancer, Scale, TrainedParameters, WeightedSum, weighted_terms
from kdkit.recipe.balancing.gradients import Gradients, each_gradient, inner_products, rows
from kdkit.utils.collectives import all_reduce_mean, is_distributed


class Rule(Protocol):
    """How much of each term's gradient goes into the combined one."""

    def coefficients(self, products: Tensor) -> Tensor:
        """Return a coefficient for each term, (terms,), from their gradients' inner products, (terms, terms)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what it remembers."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from what it remembered."""
        ...


class Surgery:
    """Sets gradients by a rule, for each net on its own.

    Of a net, the parameters that at least two terms reach are combined as one vector. Those that one term reaches get
    that term's weighted gradient, and those of losses the sum. Terms of weight 0 or without a graph are left out; where
    fewer than two are left, they are summed as goals say. Costs a backward pass for each term.
    """

    averages = True  # over the processes of a run

    def __init__(self, trained: TrainedParameters, rule: Rule) -> None:
        self._nets = trained.nets
        self._parameters = [*trained.students, *trained.losses]
        self._rule = rule

    def __call__(self, terms: Mapping[str, Tensor], weights: Mapping[str, float], scale: Scale) -> None:
        """Add the combined gradients."""
        weighted = weighted_terms(terms, weights, scale)
        if (
            len(weighted) < 2 and not is_distributed()
        ):  # among several processes what follows averages, as the sum does not
            WeightedSum()(terms, weights, scale)
            return
        found = each_gradient(list(weighted.values()), self._parameters, keep=False)
        begin = 0
        for net in self._nets:
            self._combine(net, [each[begin : begin + len(net)] for each in found])
            begin += len(net)
        for place, parameter in enumerate(self._parameters[begin:], begin):
            _add_sum(parameter, [each[place] for each in found])

    def state_dict(self) -> dict[str, Any]:
        """Return what the rule remembers."""
        return self._rule.state_dict()

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from what the rule remembered."""
        self._rule.load_state_dict(state)

    def _combine(self, net: Sequence[nn.Parameter], found: Sequence[Gradients]) -> None:
        shared = [place for place in range(len(net)) if sum(each[place] is not None for each in found) > 1]
        for place in sorted({*range(len(net))} - {*shared}):
            _add_sum(net[place], [each[place] for each in found])
        if not shared:
            return
        parameters = [net[place] for place in shared]
        picked = [tuple(each[place] for place in shared) for each in found]
        gradients = rows([each for each in picked if any(one is not None for one in each)], parameters)
        coefficients = self._rule.coefficients(inner_products(gradients))
        combined = gradients.mul_(coefficients.to(gradients)[:, None]).sum(0)
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, gradient in zip(parameters, torch.split(combined, sizes), strict=True):
            _add(parameter, gradient.view_as(parameter).to(parameter.dtype))


def _add_sum(parameter: nn.Parameter, gradients: Sequence[Tensor | None]) -> None:
    there = [each for each in gradients if each is not None]
    if there:
        total = there[0].clone() if len(there) == 1 else torch.stack(there).sum(0)  # autograd may hand out a view
        _add(parameter, all_reduce_mean(total))


def _add(parameter: nn.Parameter, gradient: Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


@dataclass(frozen=True, slots=True, kw_only=True)
class PCGrad:
    """Project the gradient of each term onto the normal plane of every other that it conflicts with, then add up.

    Two gradients conflict where their inner product is below 0. The others are met in an order drawn anew in each step;
    projections are onto the gradients as they came. Goal weights multiply the terms before. Where nothing conflicts it
    is the weighted sum. See `Surgery` for what is combined. Source: Yu et al. 2020, arXiv:2001.06782, Algorithm 1.
    """

    each_gradient = True

    def build(self, trained: TrainedParameters) -> Balancer:
        """Return it at work."""
        return Surgery(trained, Projection())


class Projection:
    """The rule of PCGrad. Orders come from a state of their own: processes of one seed draw the same ones."""

    def __init__(self) -> None:
        self._random = torch.Generator().manual_seed(torch.initial_seed())

    def coefficients(self, products: Tensor) -> Tensor:
        """Return what of each gradient is left after all projections."""
        count = len(products)
        units = torch.eye(count, dtype=products.dtype, device=products.device)
        left = torch.zeros_like(products[0])
        for index in range(count):
            mine = units[index]
            for other in torch.randperm(count, generator=self._random).tolist():
                if other != index:
                    along = mine @ products[other]
                    share = torch.where(along < 0, along / products[other, other], 0.0)
                    mine = mine - units[other] * share
            left = left + mine
        return left

    def state_dict(self) -> dict[str, Any]:
        """Return where its random numbers stand."""
        return {"random": self._random.get_state()}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Draw the orders that would have come next."""
        self._random.set_state(state["random"])


@dataclass(frozen=True, slots=True, kw_only=True)
class CAGrad:
    """The direction within c times the norm of the weighted sum around it that helps the worst-off term most.

    c: from 0, the weighted sum, to below 1, where the weighted sum still converges. Goal weights multiply the terms
    before. The paper's g_0 is the mean of the gradients and this one their sum, which changes the length only, by the
    count of the terms. Each step waits once for the device: the dual is solved on the host, over a number for each two
    terms. See `Surgery` for what is combined. Source: Liu et al. 2021, arXiv:2110.14048, Algorithm 1.
    """

    c: float = 0.5

    each_gradient = True

    def __post_init__(self) -> None:
        if isinstance(self.c, bool) or not isinstance(self.c, int | float) or not 0 <= self.c < 1:
            raise RecipeError(f"c of CAGrad is a number from 0, the weighted sum, to below 1; got {self.c!r}")

    def build(self, trained: TrainedParameters) -> Balancer:
        """Return it at work."""
        return Surgery(trained, ConflictAverse(self.c))


class ConflictAverse:
    """The rule of CAGrad, d = g_0 + c |g_0| g_w / |g_w|, where w solves the dual."""

    def __init__(self, c: float) -> None:
        self._c = c

    def coefficients(self, products: Tensor) -> Tensor:
        """Return 1 for the sum, and beside it what the direction of g_w has of each term."""
        ones = torch.ones_like(products[0])
        found = products.double().cpu().numpy()
        size = float(found.trace())
        if self._c == 0 or not math.isfinite(size) or size <= 0:  # not finite: half precision leaves this step out
            return ones
        shares = solve_dual(found / size, self._c)
        length = math.sqrt(max(float(shares @ found @ shares), 0.0))
        if (
            length**2 <= torch.finfo(products.dtype).eps * size
        ):  # the terms pull against each other: no direction helps all of them
            return ones
        more = self._c * math.sqrt(max(float(found.sum()), 0.0)) / length
        return ones + torch.from_numpy(more * shares).to(products)

    def state_dict(self) -> dict[str, Any]:
        """Nothing is remembered."""
        return {}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Nothing is remembered."""


def solve_dual(products: NDArray[np.float64], c: float) -> NDArray[np.float64]:
    """Return the shares w of the simplex, (terms,), that make g_w . g_0 + c |g_0| |g_w| least."""
    from scipy.optimize import minimize  # late: takes a while, and most recipes do without

    count = len(products)
    along = products.sum(1)
    reach = c * math.sqrt(max(float(along.sum()), 0.0))

    def value_and_slope(shares: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        turned = products @ shares
        length = math.sqrt(max(float(shares @ turned), 0.0) + 1e-20)  # smooth where g_w vanishes
        return float(shares @ along) + reach * length, along + reach * turned / length

    solved = minimize(
        value_and_slope,
        np.full(count, 1 / count),
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * count,
        constraints={"type": "eq", "fun": lambda shares: shares.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-14, "maxiter": 200},
    )
    shares: NDArray[np.float64] = np.clip(solved.x, 0.0, None)
    shares /= shares.sum()
    return shares
