"""Loss terms with known gradients, in float64, for tests of loss balancing."""

import torch
from torch import nn

from kdkit.recipe.balancing import TrainedParameters


def numbers(*values):
    """Return a trained parameter with these values."""
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def vectors(*rows):
    """Return a matrix with these rows."""
    return torch.tensor(rows, dtype=torch.float64)


def linear(parameter, gradients, values=None):
    """Return terms whose gradients to a parameter are these rows, with these values if they are set."""
    terms = {}
    for index, gradient in enumerate(gradients):
        term = (parameter * gradient).sum()
        # subtracting the detached term changes the value but not the gradient
        terms[f"term{index}"] = term if values is None else term - term.detach() + values[index]
    return terms


def ones(terms):
    """Return a weight of 1 for every term."""
    return dict.fromkeys(terms, 1.0)


def trained(terms, *nets, losses=()):
    """Return the trained parameters of these nets and losses."""
    return TrainedParameters(labels=tuple(terms), nets=tuple(tuple(net) for net in nets), losses=tuple(losses))


def plain(total):
    """Return the total unscaled, as in full precision without accumulation."""
    return total
