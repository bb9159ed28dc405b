"""Terms with known gradients, in float64, for tests of balancers."""

import torch
from torch import nn

from kdkit.recipe.balancing import TrainedParameters


def numbers(*values):
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def vectors(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def linear(parameter, gradients, values=None):
    """Return terms whose gradients on a parameter are these rows, and whose values are `values`."""
    terms = {}
    for index, gradient in enumerate(gradients):
        term = (parameter * gradient).sum()
        terms[f"term{index}"] = term if values is None else term - term.detach() + values[index]
    return terms


def ones(terms):
    return dict.fromkeys(terms, 1.0)


def trained(terms, *nets, losses=()):
    return TrainedParameters(labels=tuple(terms), nets=tuple(tuple(net) for net in nets), losses=tuple(losses))


def plain(total):
    return total
