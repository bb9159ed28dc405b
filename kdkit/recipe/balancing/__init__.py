"""Compute the gradients of a step from its terms: with a weighted sum, learned weights, or gradient surgery."""

from kdkit.recipe.balancing.base import Balancer, Balancing, TrainedParameters, WeightedSum
from kdkit.recipe.balancing.gradients import inner_products, jacobian
from kdkit.recipe.balancing.gradnorm import GradNorm
from kdkit.recipe.balancing.surgery import CAGrad, PCGrad
from kdkit.recipe.balancing.uncertainty import UncertaintyWeighting

__all__ = [
    "Balancer",
    "Balancing",
    "CAGrad",
    "GradNorm",
    "PCGrad",
    "TrainedParameters",
    "UncertaintyWeighting",
    "WeightedSum",
    "inner_products",
    "jacobian",
]
