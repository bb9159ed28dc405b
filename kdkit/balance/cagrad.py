"""Help the term that the common direction helps least, without going far from it (CAGrad)."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdkit.balance.balancer import Balancer, Trained
from kdkit.balance.surgery import Surgery
from kdkit.errors import RecipeError


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

    def build(self, trained: Trained) -> Balancer:
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
