"""The separate gradients of the terms of a step, averaged over the ranks of a distributed run."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdkit.utils.collectives import all_reduce_mean

Gradients = tuple[Tensor | None, ...]  # of one term, for each parameter; None if the term does not reach it


def separate_gradients(
    terms: Sequence[Tensor], parameters: Sequence[nn.Parameter], *, retain_graph: bool
) -> list[Gradients]:
    """Return the gradient of each term for each parameter; None if the term does not reach the parameter."""
    last = len(terms) - 1  # the graph is needed until the last term
    return [
        torch.autograd.grad(term, parameters, retain_graph=retain_graph or index < last, allow_unused=True)
        for index, term in enumerate(terms)
    ]


def jacobian(terms: Sequence[Tensor], parameters: Sequence[nn.Parameter], *, retain_graph: bool) -> Tensor:
    """Return the gradients of the terms as rows, (terms, elements of the parameters), at least in float32.

    A term without a graph has a row of zeros.
    """
    with_graph = [term for term in terms if term.requires_grad]
    gradients = iter(separate_gradients(with_graph, parameters, retain_graph=retain_graph))
    no_gradients: Gradients = (None,) * len(parameters)
    return stack_gradients([next(gradients) if term.requires_grad else no_gradients for term in terms], parameters)


def stack_gradients(gradients: Sequence[Gradients], parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return gradients as rows, (terms, elements of the parameters), averaged over the ranks; zeros for None.

    A complex element has two columns, its real and its imaginary part. Sparse gradients become dense.
    """
    dtype = torch.float32
    for parameter in parameters:
        dtype = torch.promote_types(dtype, parameter.dtype.to_real())
    size = sum(as_real(parameter).numel() for parameter in parameters)
    matrix = parameters[0].new_empty((len(gradients), size), dtype=dtype, requires_grad=False)
    for row, term_gradients in zip(matrix, gradients, strict=True):
        parts = [
            as_real(torch.zeros_like(parameter) if gradient is None else gradient.to_dense()).reshape(-1)
            for gradient, parameter in zip(term_gradients, parameters, strict=True)
        ]
        torch.cat(parts, out=row)
    return all_reduce_mean(matrix)


def as_real(tensor: Tensor) -> Tensor:
    """Return a tensor of real numbers; a complex one gets a last dimension of its real and imaginary part."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def inner_products(jacobian: Tensor) -> Tensor:
    """Return the inner products of all pairs of rows, (terms, elements) -> (terms, terms)."""
    return jacobian @ jacobian.T
