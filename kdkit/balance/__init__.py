"""Turn the terms of a step into gradients: by their sum, by weights that are learned, or by surgery."""

from kdkit.balance.balancer import Balance, Balancer, Trained
from kdkit.balance.cagrad import CAGrad
from kdkit.balance.gradnorm import GradNorm
from kdkit.balance.jacobian import inner_products, jacobian
from kdkit.balance.pcgrad import PCGrad
from kdkit.balance.uncertainty import UncertaintyWeighting
from kdkit.balance.weighted import WeightedSum

__all__ = [
    "Balance",
    "Balancer",
    "CAGrad",
    "GradNorm",
    "PCGrad",
    "Trained",
    "UncertaintyWeighting",
    "WeightedSum",
    "inner_products",
    "jacobian",
]
