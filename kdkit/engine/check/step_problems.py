"""Find the problems of a training step: backward passes, optimizers and batch sizes that fail. Nothing is changed."""

import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.optim import Optimizer as TorchOptimizer

from kdkit.data.batch import Batch
from kdkit.data.dataset import Data, LoaderSplit
from kdkit.data.order import shard_rows, training_batch_sizes
from kdkit.engine.check.facts import Facts
from kdkit.engine.failures.network_errors import line_of_user_code
from kdkit.engine.stage.batch_transform import BatchTransform, transformed
from kdkit.engine.stage.module import DistillationModule, temporary_training
from kdkit.engine.stage.open_stage import OpenStage
from kdkit.engine.stage.train_state import build_balancer, optimized_parameters
from kdkit.errors import KdkitError, first_line
from kdkit.recipe.balancing.base import unscaled
from kdkit.utils import collectives
from kdkit.utils.devices import Precision
from kdkit.utils.memory import is_out_of_memory
from kdkit.utils.modules import uncompiled


def update_problems(facts: Facts) -> Iterator[str]:
    """Yield the problems of a step for a tiny batch, with all weights 1: of its backward pass and its optimizer."""
    module, training = facts.module, facts.stage.training
    try:
        balancer = build_balancer(training, module)
        named = optimized_parameters(module, balancer)
        optimizer = training.optimizer.build(named)
        with temporary_training(module, [module]), warnings.catch_warnings(), uncompiled():  # compiling takes long
            warnings.simplefilter("ignore")  # a run shows them
            with facts.open_stage.autocast():
                losses = module(facts.batch, facts.teacher_outputs)
            balancer(losses, dict.fromkeys(losses, 1.0), unscaled)
            problem = _optimizer_problem(optimizer)
        yield from filter(None, [problem, _scaling_problem(named, facts.open_stage.precision)])
    except KdkitError as error:
        yield str(error)
    except Exception as error:  # user-defined networks, losses and balancers may raise anything
        if is_out_of_memory(error):
            raise
        yield f"the backward pass with {training.balancing!r} fails: {_reason(error, module)}"


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


def _reason(error: Exception, module: DistillationModule) -> str:
    """Return why a backward pass fails, with advice if there is any."""
    recomputing = next((net.name for net in module.students if net.recompute), None)
    advice = ""
    if recomputing is not None:
        advice = (
            f"; modules that net {recomputing!r} recomputes must not change their inputs in place, and must compute "
            "the same values in a second pass"
        )
    elif "backward through the graph a second time" in str(error):
        advice = (
            "; if a forward calls torch.autograd.grad, as for forces, pass create_graph=True in training: with "
            "retain_graph=True alone, the result would not be trained"
        )
    return f"{type(error).__name__}: {first_line(error)}{line_of_user_code(error)}{advice}"


def _optimizer_problem(optimizer: TorchOptimizer) -> str | None:
    """Return why an optimizer cannot step, which some only raise in their first step, or None. The step is undone.

    Only the smallest parameter of each kind in each group is kept, so that the step takes little time and memory.
    """
    for group in optimizer.param_groups:
        smallest: dict[tuple[object, ...], nn.Parameter] = {}
        for parameter in sorted(group["params"], key=torch.numel):
            layout = None if parameter.grad is None else parameter.grad.layout
            if smallest.setdefault((layout, parameter.dtype, parameter.device), parameter) is not parameter:
                parameter.grad = None
        group["params"] = [*smallest.values()]
    kept = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    before = [parameter.detach().clone() for parameter in kept]
    try:
        optimizer.step()
    except Exception as error:  # the optimizer may be user-defined
        advice = ""
        if "sparse" in str(error) or "dense" in str(error):
            advice = "; torch.optim.SGD and Adagrad take both, and embeddings without sparse=True have dense gradients"
        return f"{type(optimizer).__name__} cannot step: {first_line(error)}{advice}"
    finally:
        with torch.no_grad():
            for parameter, values in zip(kept, before, strict=True):
                parameter.copy_(values)
    return None


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
