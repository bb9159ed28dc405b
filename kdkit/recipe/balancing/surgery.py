"""Gradient surgery, which combines the separate gradients of the terms: PCGrad and CAGrad."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdkit.recipe.balancing.base import Balancer, Balancing, Scale, TrainedParameters, WeightedSum, contributing_terms
from kdkit.recipe.balancing.gradients import (
    Gradients,
    as_real,
    inner_products,
    separate_gradients,
    stack_gradients,
)
from kdkit.utils.collectives import all_reduce_mean, is_distributed
from kdkit.utils.validation import validate_share


@dataclass(frozen=True, slots=True, kw_only=True)
class PCGrad(Balancing):
    """Project the gradient of each term onto the normal planes of the gradients it conflicts with, and add them up.

    Two gradients conflict if their inner product is negative. Each gradient is projected onto the normal planes of the
    original gradients, in a random order that is drawn in each step. Terms are first multiplied by the weights of the
    objective; without conflicts, the result is the weighted sum. See `Surgery` for which parameters are combined.
    Source: Yu et al. 2020, arXiv:2001.06782, Algorithm 1.
    """

    needs_separate_gradients = True

    def build(self, trained: TrainedParameters) -> Balancer:
        """Return the balancer of a stage."""
        return Projection(trained)


@dataclass(frozen=True, slots=True, kw_only=True)
class CAGrad(Balancing):
    """Find the direction near the weighted sum of the gradients that improves the worst term most.

    The direction differs from the sum by at most c times the norm of the sum.
    c: in [0, 1); 0 is the weighted sum, and below 1 CAGrad converges to a minimum of the weighted sum.

    Terms are first multiplied by the weights of the objective. The paper's g_0 is the mean of the gradients; here it is
    their sum, which only multiplies the result by the number of terms. Each step waits for the device once, because the
    dual problem is solved on the CPU, from the inner products of all pairs of terms. See `Surgery` for which parameters
    are combined. Raises RecipeError for c out of range.
    Source: Liu et al. 2021, arXiv:2110.14048, Algorithm 1.
    """

    c: float = 0.5

    needs_separate_gradients = True

    def __post_init__(self) -> None:
        validate_share("c of CAGrad", self.c, below_one=True)

    def build(self, trained: TrainedParameters) -> Balancer:
        """Return the balancer of a stage."""
        return ConflictAverse(trained, self.c)


class Surgery(Balancer):
    """Combines the gradients of the terms, for each network separately; a subclass has the `coefficients`.

    The gradients of all parameters of a network that at least two terms reach are combined as one vector. Parameters
    that only one term reaches get the weighted gradient of that term. Parameters of losses get the sum over terms.
    Terms with weight 0 or without a graph are left out. If fewer than two remain, the result is their weighted sum.
    Needs a backward pass for each term. With accumulated gradients, those of each micro-batch are combined, and the
    results are added.
    """

    averages_across_ranks = True

    def __init__(self, trained: TrainedParameters) -> None:
        self._nets = trained.nets
        self._parameters = [*trained.students, *trained.losses]

    def coefficients(self, products: Tensor) -> Tensor:
        """Return a coefficient per term, (terms,), from the inner products of their gradients, (terms, terms)."""
        raise NotImplementedError

    def __call__(self, terms: Mapping[str, Tensor], weights: Mapping[str, float], scale: Scale) -> None:
        """Add the combined gradients."""
        weighted = contributing_terms(terms, weights, scale)
        # In a distributed run, the code below averages gradients over the ranks, but WeightedSum would not.
        if len(weighted) < 2 and not is_distributed():
            WeightedSum()(terms, weights, scale)
            return
        gradients = separate_gradients(list(weighted.values()), self._parameters, retain_graph=False)
        first = 0
        for net in self._nets:
            last = first + len(net)
            self._combine(net, [term_gradients[first:last] for term_gradients in gradients])
            first = last
        for index, parameter in enumerate(self._parameters[first:], first):  # the parameters of losses
            _add_sum(parameter, [term_gradients[index] for term_gradients in gradients])

    def _combine(self, net: Sequence[nn.Parameter], gradients: Sequence[Gradients]) -> None:
        """Add the combined gradients of one network. gradients: of each term, for the network's parameters."""
        columns = [[term_gradients[index] for term_gradients in gradients] for index in range(len(net))]
        shared = [index for index, column in enumerate(columns) if sum(grad is not None for grad in column) > 1]
        for index in sorted({*range(len(net))} - {*shared}):
            _add_sum(net[index], columns[index])
        if not shared:
            return
        parameters = [net[index] for index in shared]
        selected = [tuple(term_gradients[index] for index in shared) for term_gradients in gradients]
        selected = [term_gradients for term_gradients in selected if any(grad is not None for grad in term_gradients)]
        matrix = stack_gradients(selected, parameters)  # (terms, elements of the shared parameters)
        coefficients = self.coefficients(inner_products(matrix))
        combined = matrix.mul_(coefficients.to(matrix)[:, None]).sum(0)
        sizes = [as_real(parameter).numel() for parameter in parameters]
        for parameter, gradient in zip(parameters, torch.split(combined, sizes), strict=True):
            gradient = gradient.view_as(as_real(parameter))
            if parameter.is_complex():
                gradient = torch.complex(*gradient.unbind(-1))
            _add(parameter, gradient.to(parameter.dtype))


class Projection(Surgery):
    """The balancer of PCGrad. Its random state is seeded like torch's, so that all ranks draw the same orders."""

    def __init__(self, trained: TrainedParameters) -> None:
        super().__init__(trained)
        self._random = torch.Generator().manual_seed(torch.initial_seed())

    def coefficients(self, products: Tensor) -> Tensor:
        """Return the coefficients of the sum of the projected gradients."""
        # A projected gradient is a linear combination of the original ones, so only its coefficients are computed.
        count = len(products)
        units = torch.eye(count, dtype=products.dtype, device=products.device)
        total = torch.zeros_like(products[0])
        for index in range(count):
            projected = units[index]
            for conflicting in torch.randperm(count, generator=self._random, device="cpu").tolist():
                if conflicting != index:
                    product = projected @ products[conflicting]
                    share = torch.where(product < 0, product / products[conflicting, conflicting], 0.0)
                    projected = projected - units[conflicting] * share
            total = total + projected
        return total

    def state_dict(self) -> dict[str, Any]:
        """Return the random state."""
        return {"random": self._random.get_state()}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Load a random state, so that the next orders are the same."""
        self._random.set_state(state["random"])


class ConflictAverse(Surgery):
    """The balancer of CAGrad, d = g_0 + c |g_0| g_w / |g_w|. w solves the dual problem."""

    def __init__(self, trained: TrainedParameters, c: float) -> None:
        super().__init__(trained)
        self._c = c

    def coefficients(self, products: Tensor) -> Tensor:
        """Return 1, for g_0, plus the coefficients of the direction of g_w."""
        ones = torch.ones_like(products[0])
        matrix = products.cpu().double().numpy()  # in this order, because MPS has no float64
        trace = float(matrix.trace())
        # In half precision, gradients may overflow. The gradient scaler then skips this step.
        if self._c == 0 or not math.isfinite(trace) or trace <= 0:
            return ones
        shares = solve_dual(matrix / trace, self._c)
        norm = math.sqrt(max(float(shares @ matrix @ shares), 0.0))  # |g_w|
        # If g_w vanishes, the gradients oppose each other, and no direction improves all terms.
        if norm**2 <= torch.finfo(products.dtype).eps * trace:
            return ones
        factor = self._c * math.sqrt(max(float(matrix.sum()), 0.0)) / norm  # c |g_0| / |g_w|
        return ones + torch.from_numpy(factor * shares).to(products)


def solve_dual(products: NDArray[np.float64], c: float) -> NDArray[np.float64]:
    """Return the w on the simplex, (terms,), that minimises g_w . g_0 + c |g_0| |g_w| (Algorithm 1)."""
    from scipy.optimize import minimize  # late: the import takes a while, and most recipes do not need it

    count = len(products)
    products_with_sum = products.sum(1)  # g_i . g_0
    radius = c * math.sqrt(max(float(products_with_sum.sum()), 0.0))  # c |g_0|

    def value_and_gradient(shares: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        products_with_mean = products @ shares
        norm = math.sqrt(max(float(shares @ products_with_mean), 0.0) + 1e-20)  # the norm has no gradient at g_w = 0
        value = float(shares @ products_with_sum) + radius * norm
        return value, products_with_sum + radius * products_with_mean / norm

    solution = minimize(
        value_and_gradient,
        np.full(count, 1 / count),
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * count,
        constraints={"type": "eq", "fun": lambda shares: shares.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-14, "maxiter": 200},
    )
    shares: NDArray[np.float64] = np.clip(solution.x, 0.0, None)  # SLSQP satisfies constraints up to rounding
    shares /= shares.sum()
    return shares


def _add_sum(parameter: nn.Parameter, gradients: Sequence[Tensor | None]) -> None:
    defined = [gradient for gradient in gradients if gradient is not None]
    if defined:
        # A single gradient is copied, because autograd may return a view of another tensor.
        total = defined[0].clone() if len(defined) == 1 else torch.stack(defined).sum(0)
        _add(parameter, all_reduce_mean(total))


def _add(parameter: nn.Parameter, gradient: Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
