"""Combine the gradients of the terms anew where they share parameters, by a rule that knows their inner products."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kdkit.balance.balancer import Scale, Trained, weighted_terms
from kdkit.balance.jacobian import Gradients, each_gradient, inner_products, rows
from kdkit.balance.weighted import WeightedSum
from kdkit.ranks import averaged, several


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

    def __init__(self, trained: Trained, rule: Rule) -> None:
        self._nets = trained.nets
        self._parameters = [*trained.learners, *trained.losses]
        self._rule = rule

    def __call__(self, terms: Mapping[str, Tensor], weights: Mapping[str, float], scale: Scale) -> None:
        """Add the combined gradients."""
        weighted = weighted_terms(terms, weights, scale)
        if len(weighted) < 2 and not several():  # among several processes what follows averages, as the sum does not
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
        _add(parameter, averaged(total))


def _add(parameter: nn.Parameter, gradient: Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
