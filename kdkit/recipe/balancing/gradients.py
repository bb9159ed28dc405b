"""The gradient of each term of a step on its own, the same on every process of a distributed run."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdkit.utils.collectives import all_reduce_mean

Gradients = tuple[Tensor | None, ...]


def each_gradient(terms: Sequence[Tensor], parameters: Sequence[nn.Parameter], *, keep: bool) -> list[Gradients]:
    """Return each term's gradient on each parameter, None where it does not reach it; keep the graph if told to."""
    last = len(terms) - 1
    return [
        torch.autograd.grad(term, parameters, retain_graph=keep or index < last, allow_unused=True)
        for index, term in enumerate(terms)
    ]


def jacobian(terms: Sequence[Tensor], parameters: Sequence[nn.Parameter], *, keep: bool) -> Tensor:
    """Return the gradients of terms as rows, (terms, numbers in parameters), in float32 or better.

    keep: whether the graph is needed after. A term without a graph has a row of zeros.
    """
    graphs = [term for term in terms if term.requires_grad]
    found = iter(each_gradient(graphs, parameters, keep=keep))
    nothing: Gradients = (None,) * len(parameters)
    return rows([next(found) if term.requires_grad else nothing for term in terms], parameters)


def rows(gradients: Sequence[Gradients], parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return gradients as rows, (terms, numbers in parameters): zeros where there is none, averaged over processes."""
    dtype = torch.float32
    for parameter in parameters:
        dtype = torch.promote_types(dtype, parameter.dtype)
    size = sum(parameter.numel() for parameter in parameters)
    matrix = parameters[0].new_empty((len(gradients), size), dtype=dtype, requires_grad=False)
    for row, each in zip(matrix, gradients, strict=True):
        torch.cat([_or_zeros(*pair).reshape(-1) for pair in zip(each, parameters, strict=True)], out=row)
    return all_reduce_mean(matrix)


def inner_products(jacobian: Tensor) -> Tensor:
    """Return the inner product of each two rows, (terms, terms)."""
    return jacobian @ jacobian.T


def _or_zeros(gradient: Tensor | None, parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient
