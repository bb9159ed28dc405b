"""Try one step of the optimizer of a stage, which is undone: some optimizers raise in their first step only."""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer as TorchOptimizer

from kdkit.errors import KdkitError, first_line
from kdkit.recipe.optim import Optimizer

_Gradients = dict[nn.Parameter, Tensor]


def step_problem(
    options: Optimizer,
    named: Sequence[tuple[str, nn.Parameter]],
    module: nn.Module,
    compute_gradients: Callable[[], None],
) -> str | None:
    """Return the problem of an optimizer that cannot be created for these parameters or cannot step, or None.

    module: the one that holds the parameters, which must have no gradients. compute_gradients: runs a backward pass,
    and is called only if a step with gradients of zeros fails.
    """
    try:
        optimizer = options.build(named)
        error = _step_error(optimizer, _zero_gradients(optimizer, module))
        if error is not None:
            # A network may have sparse gradients that its modules do not show.
            compute_gradients()
            gradients = {parameter: parameter.grad for _, parameter in named if parameter.grad is not None}
            error = _step_error(options.build(named), gradients)
    except KdkitError as problem:
        return str(problem)
    if error is None:
        return None
    advice = ""
    if "sparse" in str(error) or "dense" in str(error):
        advice = "; torch.optim.SGD and Adagrad take both, and embeddings without sparse=True have dense gradients"
    return f"{type(optimizer).__name__} cannot step: {first_line(error)}{advice}"


def _zero_gradients(optimizer: TorchOptimizer, module: nn.Module) -> _Gradients:
    """Return a gradient of zeros for the smallest parameter of each kind in each group.

    Optimizers skip parameters without a gradient, so that the step takes little time and memory.
    """
    embeddings = [part for part in module.modules() if isinstance(part, nn.Embedding | nn.EmbeddingBag)]
    sparse = {part.weight for part in embeddings if part.sparse}
    smallest: dict[tuple[object, ...], nn.Parameter] = {}
    for index, group in enumerate(optimizer.param_groups):
        for parameter in sorted(group["params"], key=torch.numel):
            smallest.setdefault((index, parameter in sparse, parameter.dtype, parameter.device), parameter)
    gradients = {}
    for parameter in smallest.values():
        gradients[parameter] = torch.zeros_like(parameter)
        if parameter in sparse:
            no_rows = torch.zeros(1, 0, dtype=torch.int64, device=parameter.device)
            values = parameter.new_zeros(0, *parameter.shape[1:])
            # torch warns if the checks of a sparse tensor are neither requested nor declined.
            gradients[parameter] = torch.sparse_coo_tensor(no_rows, values, parameter.shape, check_invariants=False)
    return gradients


def _step_error(optimizer: TorchOptimizer, gradients: _Gradients) -> Exception | None:
    """Step with these gradients, restore the parameters, and return the error of the step, or None."""
    before = {parameter: parameter.detach().clone() for parameter in gradients}
    for parameter, gradient in gradients.items():
        parameter.grad = gradient
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.step()
    except Exception as error:  # the optimizer may be user-defined
        return error
    finally:
        with torch.no_grad():
            for parameter, values in before.items():
                parameter.copy_(values)
                parameter.grad = None
    return None
