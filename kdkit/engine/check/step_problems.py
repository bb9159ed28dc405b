"""Find the problems of a training step: backward passes, optimizers and batch sizes that fail. Nothing is changed."""

import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer as TorchOptimizer

from kdkit.data.batch import Batch
from kdkit.data.dataset import Data, LoaderSplit
from kdkit.data.order import shard_rows, training_batch_sizes
from kdkit.engine.stage.batch_transform import BatchTransform, transformed
from kdkit.engine.stage.module import temporary_training
from kdkit.engine.stage.open_stage import OpenStage
from kdkit.engine.stage.train_state import build_balancer, optimized_parameters
from kdkit.errors import KdkitError, first_line
from kdkit.recipe.balancing.base import WeightedSum
from kdkit.recipe.optim import Optimizer
from kdkit.utils import collectives
from kdkit.utils.devices import Precision

_Gradients = dict[nn.Parameter, Tensor]


def update_problems(open_stage: OpenStage, batch: Batch) -> Iterator[str]:
    """Yield the problems of a backward pass for a tiny batch, with all weights 1, and of an optimizer step."""
    module, training = open_stage.module, open_stage.stage.training
    recomputing = [net.name for net in module.students if net.recompute]
    try:
        balancer = build_balancer(training, module)

        def compute_gradients() -> None:
            with open_stage.autocast():
                losses = module(batch, open_stage.teacher_outputs(batch))
            balancer(losses, dict.fromkeys(losses, 1.0), lambda total: total)

        # The backward pass of a sum of finite terms with gradients cannot fail.
        if type(training.balancing) is not WeightedSum or recomputing:
            with temporary_training(module, [module]):
                compute_gradients()
        named = optimized_parameters(module, balancer)
        with temporary_training(module, [module]):
            problem = _optimizer_problem(training.optimizer, named, module, compute_gradients)
        yield from filter(None, [problem, _scaling_problem(named, open_stage.precision)])
    except KdkitError as error:
        yield str(error)
    except Exception as error:  # a user-defined balancer may raise anything
        reason = f"{type(error).__name__}: {error}"
        if recomputing:
            yield (
                f"the backward pass fails; modules that net {recomputing[0]!r} recomputes must not change their inputs "
                f"in place, and must compute the same values in a second pass: {reason}"
            )
        else:
            yield f"{training.balancing!r} fails in this stage: {reason}"


def batch_problems(open_stage: OpenStage, data: Data, batch: Batch) -> Iterator[str]:
    """Yield the problems of the batch sizes of an epoch, as far as they are known in advance.

    batch: a tiny batch, before the data's `batch_transform`; its samples are repeated. Inputs that cannot be divided
    into samples are not tried.
    """
    if not batch.is_divisible:
        return
    whole = training_batch_sizes(data.train, open_stage.stage.training.batch_size) or ()
    # With several processes, each trains on one part of the batch. Every process tries all part sizes, so that all of
    # them fail together.
    count = collectives.world_size()
    sizes = sorted({len(shard_rows(torch.arange(size), rank, count)) for size in set(whole) for rank in range(count)})
    try:
        if BatchTransform.from_data(data) is not None:
            for size in sizes:
                transformed(data, batch.rows(torch.arange(size) % len(batch)))
        if 1 in sizes and len(batch) > 1 and isinstance(data.train, LoaderSplit):  # other splits drop a single sample
            _train_on_single(open_stage, transformed(data, batch.rows(torch.arange(1))))
    except KdkitError as error:
        numbers = " or ".join(map(str, sizes))
        remedy = "DataLoader(..., drop_last=True), or a batch_size that divides the number of samples"
        yield f"{error}; the batches of an epoch have {numbers} samples: pass {remedy}"


def _optimizer_problem(
    options: Optimizer,
    named: Sequence[tuple[str, nn.Parameter]],
    module: nn.Module,
    compute_gradients: Callable[[], None],
) -> str | None:
    """Return why an optimizer cannot step, which some only raise in their first step, or None. The step is undone.

    module: holds the named parameters, which must not have gradients. compute_gradients: runs a backward pass; it is
    called only if a step with zero gradients fails.
    """
    optimizer = options.build(named)
    error = _step_error(optimizer, _zero_gradients(optimizer, module))
    if error is not None:
        # A network may have sparse gradients that none of its modules declares.
        compute_gradients()
        gradients = {parameter: parameter.grad for _, parameter in named if parameter.grad is not None}
        error = _step_error(options.build(named), gradients)
    if error is None:
        return None
    advice = ""
    if "sparse" in str(error) or "dense" in str(error):
        advice = "; torch.optim.SGD and Adagrad take both, and embeddings without sparse=True have dense gradients"
    return f"{type(optimizer).__name__} cannot step: {first_line(error)}{advice}"


def _scaling_problem(named: Sequence[tuple[str, nn.Parameter]], precision: Precision) -> str | None:
    """Return why the gradients of float16 or complex weights cannot be scaled, or None."""
    for dtype, remedy in (
        (torch.float16, "convert the network with module.float()"),
        (torch.complex64, "pass precision='bf16', which needs no scaling"),
    ):
        names = [name for name, parameter in named if parameter.dtype == dtype]
        if precision == "fp16" and names:
            return (
                f"a run with precision='fp16' scales the gradients of float32 weights, but {len(names)} trained "
                f"weights are {str(dtype).removeprefix('torch.')}, such as {names[0]!r}; {remedy}"
            )
    return None


def _train_on_single(open_stage: OpenStage, batch: Batch) -> None:
    """Raise KdkitError if a network or loss of a stage fails for a single sample, as batch norm does."""
    module = open_stage.module
    with open_stage.autocast(), temporary_training(module, [module]):
        try:
            module(batch, open_stage.teacher_outputs(batch))
        except Exception as error:  # user-defined networks and losses may raise anything
            raise KdkitError(f"a step fails for a batch of a single sample: {first_line(error)}") from error


def _zero_gradients(optimizer: TorchOptimizer, module: nn.Module) -> _Gradients:
    """Return a zero gradient for the smallest parameter of each kind in each group.

    Optimizers skip parameters without a gradient, so the step takes little time and memory.
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
            no_rows = torch.zeros(0, dtype=torch.int64, device=parameter.device)
            # Not torch.sparse_coo_tensor, of which torch 2.11 warns.
            (gradients[parameter],) = torch.autograd.grad(F.embedding(no_rows, parameter, sparse=True).sum(), parameter)
    return gradients


def _step_error(optimizer: TorchOptimizer, gradients: _Gradients) -> Exception | None:
    """Take a step with these gradients, restore the parameters, and return the error of the step, or None."""
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
