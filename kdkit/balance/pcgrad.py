"""Take out of each term's gradient what works against another term (PCGrad)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdkit.balance.balancer import Balancer, Trained
from kdkit.balance.surgery import Surgery


@dataclass(frozen=True, slots=True, kw_only=True)
class PCGrad:
    """Project the gradient of each term onto the normal plane of every other that it conflicts with, then add up.

    Two gradients conflict where their inner product is below 0. The others are met in an order drawn anew in each step;
    projections are onto the gradients as they came. Goal weights multiply the terms before. Where nothing conflicts it
    is the weighted sum. See `Surgery` for what is combined. Source: Yu et al. 2020, arXiv:2001.06782, Algorithm 1.
    """

    each_gradient = True

    def build(self, trained: Trained) -> Balancer:
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
