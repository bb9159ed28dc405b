"""Find networks that fail for validation or test samples, which a run would only find after an epoch, or at its end."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from kdkit.data.batch import Batch, items_of, nested_tensors
from kdkit.data.dataset import LoaderSplit, Split, split_name
from kdkit.engine.check.metric_problems import number_metric_problems
from kdkit.engine.failures.network_errors import describe_failure, line_of_user_code
from kdkit.engine.predict import classes_problem
from kdkit.errors import KdkitError
from kdkit.losses.base import BuildContext
from kdkit.metrics.base import NetworkReducing, reduced_by_network
from kdkit.metrics.bootstrap import without_interval
from kdkit.nets.net import Net
from kdkit.recipe.recipe import Recipe
from kdkit.utils.devices import Precision, autocast
from kdkit.utils.memory import is_out_of_memory
from kdkit.utils.modules import eval_mode


def validation_problems(
    net: Net[Any],
    recipe: Recipe,
    context: BuildContext,
    batches: tuple[Batch, Batch, Batch | None],
    precision: Precision,
) -> Iterator[str]:
    """Yield why a network fails for validation samples, has no output for each class, or outputs without a metric.

    Inputs of the form of those of training are not tried, unless metrics of numbers need their outputs, or a metric
    runs the network. Test samples are tried if their form is another one.
    batches: tiny ones of training, validation and test on the device, the first as the data's `batch_transform` has
    changed it.
    """
    training, validation, test = batches
    is_regression = context.task == "regression"
    running = [metric for metric in map(without_interval, recipe.metrics) if isinstance(metric, NetworkReducing)]
    data, forms = recipe.data, [_form(batch, with_labels=is_regression) for batch in (training, validation)]
    advice = "" if data.batch_transform is None else "; batch_transform changes only training batches"
    evaluated: list[tuple[Split | LoaderSplit, Batch]] = []
    if is_regression or running or forms[0] != forms[1]:
        evaluated.append((data.validation, validation))
    if data.test is not None and test is not None and _form(test, with_labels=is_regression) not in forms:
        evaluated.append((data.test, test))
    for split, batch in evaluated:
        try:
            with torch.no_grad(), eval_mode(net.module), autocast(precision, batch.labels.device):
                outputs = net.first_pass(batch)
        except Exception as error:  # a network may raise anything
            if is_out_of_memory(error):
                raise
            reason = describe_failure(net, batch, error)
            yield f"net {net.name!r} cannot be evaluated on the {split_name(data, split)} data: {reason}{advice}"
        else:
            yield from filter(None, [classes_problem(net, tuple(outputs.shape), data, recipe.metrics, split)])
            if is_regression:
                yield from number_metric_problems(recipe, context, net, split_name(data, split), outputs, batch.labels)
            yield from _problems_of_running(running, net, batch, precision)


def _problems_of_running(
    metrics: Iterable[NetworkReducing], net: Net[Any], validation: Batch, precision: Precision
) -> Iterator[str]:
    """Yield the problems of metrics that run the network."""
    for metric in metrics:
        try:
            with torch.no_grad(), eval_mode(net.module), autocast(precision, validation.labels.device):
                reduced_by_network([metric], net.module, validation)
        except KdkitError as error:
            yield f"net {net.name!r}: {error}"
        except Exception as error:  # a user-defined metric may raise anything
            if is_out_of_memory(error):
                raise
            yield (
                f"metric {metric.name!r} cannot be computed for net {net.name!r}: {type(error).__name__}: {error}"
                f"{line_of_user_code(error)}"
            )


def _form(batch: Batch, *, with_labels: bool) -> object:
    """Return what a network may depend on: the names of the inputs, and the shapes and dtypes of samples.

    with_labels: whether metrics depend on the shapes of labels too.
    """
    inputs, tensors = batch.inputs, [*nested_tensors(batch.inputs), *([batch.labels] if with_labels else [])]
    names = [name for name, _ in items_of(inputs) or ()]
    # The samples of a nested tensor have their own shapes, and it may have none itself.
    return type(inputs), names, [(item.dtype, not item.is_nested and item.shape[1:]) for item in tensors]
