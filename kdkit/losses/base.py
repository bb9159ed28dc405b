"""Define the interface of a loss: `(student, target) -> scalar`, with optional keyword arguments and a build step."""

import inspect
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from kdkit.data.dataset import Task
from kdkit.utils.reprs import with_names
from kdkit.utils.signatures import parameters_by_name

# A plain function, a dataclass with `__call__` or an nn.Module. Ground truth labels are a target like teacher outputs.
Loss = Callable[..., Tensor]

# The keyword arguments that a loss may accept in addition to (student, target). progress is the fraction of the stage
# that has been trained, in [0, 1]; teacher_outputs is a tuple with the logits of each teacher; sample_weights is
# (batch,); inputs are the inputs of the batch, before any view.
LOSS_KWARGS = ("labels", "ids", "progress", "teacher_outputs", "sample_weights", "inputs")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildContext:
    """Information about the data and the target that a loss receives when it is built.

    classes: the class names. task: the kind of labels. samples: the number of training samples, None if it is not
    known. ids: whether samples have ids. has_unknown: whether labels may be NaN, which stands for unknown.
    position_dims: the number of dimensions of the positions if each has a label, 0 if samples have one label each.
    ignored_labels: the class indices that stand for no label. has_labels, has_weights: whether samples have them.
    batch_size: the batch size of the training. tapped: the modules that the target's taps read, in the order of the
    taps. teacher_classes: the names of the outputs of the matched network, if they differ from `classes`.
    heads: the modules that compute the outputs of the student and of the target, if a `HeadTap` captures their inputs.
    columns: for each side, the columns of its outputs that are compared; None if all are compared, in their order.
    """

    classes: tuple[str, ...]
    task: Task
    samples: int | None
    ids: bool
    has_unknown: bool = False
    position_dims: int = 0
    ignored_labels: tuple[int, ...] = ()
    has_labels: bool = True
    has_weights: bool = False
    batch_size: int | None = None
    tapped: tuple[nn.Module, ...] = ()
    teacher_classes: tuple[str, ...] | None = None
    heads: tuple[nn.Module | None, nn.Module | None] = (None, None)
    columns: tuple[tuple[int, ...] | None, tuple[int, ...] | None] = (None, None)


class LossAttributes(Protocol):
    """Optional attributes of a loss. The values here are the defaults of a loss that does not define them.

    extra_kwargs: the names from LOSS_KWARGS that the loss accepts; by default they are read from its signature.
    requires: what the loss needs in addition to its keyword arguments without a default: "ids", or "hard_labels" (one
    class per sample).
    accepts_unknown: whether labels may be NaN, which stands for an unknown label, or for a loss of a `Match` the
    `ignore_index` of samples without a label. Otherwise, data with unknown labels is a problem for a loss that takes
    labels, and such a loss of a `Match` does not get samples without a label.
    per_position: whether the loss compares outputs (rows, classes) row by row. If labels are per position, such a loss
    gets a row for each labelled position of the batch, and labels (rows,).
    mean_over_rows: whether the loss is a mean over the rows of outputs, so that `Chunked` can compare them chunk by
    chunk.
    any_classes: whether the outputs of both sides may have different classes. They are then not aligned by name.
    accepts_no_rows: whether the loss is called even if no row of the batch has a label. A loss that communicates
    between ranks must be, because the other ranks would wait for a rank that does not call it.
    fills_missing: whether the loss also gets samples without a teacher output, such as all samples of a `Past` in the
    first epoch, with the student's own detached output as their target. Otherwise, they are left out.
    reduction: "sum" for a loss that is a sum over samples, such as one of torch; any other is a mean.
    """

    extra_kwargs: Collection[str] | None = None
    requires: Collection[str] = ()
    accepts_unknown: bool = False
    per_position: bool = False
    mean_over_rows: bool = False
    any_classes: bool = False
    accepts_no_rows: bool = False
    fills_missing: bool = False
    reduction: str | None = None


@runtime_checkable
class BuildableLoss(Protocol):
    """A loss with weights or memory: an `nn.Module` that is built once its shapes are known, before the optimizer."""

    def build(
        self,
        student: tuple[torch.Size, ...],
        target: tuple[torch.Size, ...],
        context: BuildContext,
        teacher: nn.Module | None,
    ) -> None:
        """Create the weights for these shapes, one shape per tap. Raises RecipeError if the shapes do not fit.

        teacher: the module that computes the target, if there is one; a tuple of modules for `Teachers`. A loss may be
        built more than once, so `build` replaces the weights instead of adding to them.
        """
        ...


# For the error of a `build` that takes or reads other arguments.
BUILD_ARGUMENTS = "; build(student, target, context, teacher) gets a tuple of shapes for each side, one shape per tap"


def loss_name(loss: Callable[..., Any]) -> str:
    """Return the name of a loss or loss class in snake case: soft_targets for SoftTargets(...)."""
    name = getattr(loss, "__name__", None) or type(loss).__name__
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def describe_loss(loss: Any) -> str:
    """Return the name of a loss, with the options of a module. Functions among the options have their names."""
    if isinstance(loss, nn.Module):
        options = loss.extra_repr()
        text = f"{type(loss).__name__}({options})" if options else type(loss).__name__
    else:
        text = getattr(loss, "__name__", None) or repr(loss)
    return with_names(text)


def extra_kwargs_of(loss: Loss) -> frozenset[str]:
    """Return the names from LOSS_KWARGS that a loss accepts, by its signature or its attribute `extra_kwargs`."""
    declared: Any = getattr(loss, "extra_kwargs", LossAttributes.extra_kwargs)
    return frozenset(LOSS_KWARGS) & (_extra_parameters(loss).keys() if declared is None else frozenset(declared))


def requirements_of(loss: Loss) -> frozenset[str]:
    """Return what a loss needs: its keyword arguments without a default, and its attribute `requires`."""
    parameters = _extra_parameters(loss)
    required = {
        name for name in LOSS_KWARGS if name in parameters and parameters[name].default is inspect.Parameter.empty
    }
    declared: Any = getattr(loss, "requires", LossAttributes.requires)
    return frozenset(required) | frozenset(declared)


def accepts_unknown(loss: Loss) -> bool:
    """Return whether a loss leaves out labels that are NaN, by its attribute `accepts_unknown`."""
    return bool(getattr(loss, "accepts_unknown", LossAttributes.accepts_unknown))


def is_per_position(loss: Loss) -> bool:
    """Return whether a loss takes a row per position, by its attribute `per_position`."""
    return bool(getattr(loss, "per_position", LossAttributes.per_position))


def is_mean_over_rows(loss: Loss) -> bool:
    """Return whether a loss is a mean over rows, by its attribute `mean_over_rows`."""
    return bool(getattr(loss, "mean_over_rows", LossAttributes.mean_over_rows))


def allows_any_classes(loss: Loss) -> bool:
    """Return whether a loss takes outputs over different classes, by its attribute `any_classes`."""
    return bool(getattr(loss, "any_classes", LossAttributes.any_classes))


def accepts_no_rows(loss: Loss) -> bool:
    """Return whether a loss is called for a batch without rows, by its attribute `accepts_no_rows`."""
    return bool(getattr(loss, "accepts_no_rows", LossAttributes.accepts_no_rows))


def fills_missing(loss: Loss) -> bool:
    """Return whether a loss gets samples without a teacher output, by its attribute `fills_missing`."""
    return bool(getattr(loss, "fills_missing", LossAttributes.fills_missing))


def is_sum(loss: Loss) -> bool:
    """Return whether a loss is a sum over samples, by its attribute `reduction`."""
    return bool(option_of(loss, "reduction") == "sum")


def option_of(loss: Loss, name: str) -> Any:
    """Return an option of a loss, None if it has none: an attribute, or the argument of a function of torch."""
    if getattr(function_of(loss), "__module__", None) != "torch.nn.functional":
        return getattr(loss, name, None)
    parameter = parameters_by_name(loss).get(name)  # a partial changes the defaults
    return None if parameter is None else parameter.default


def function_of(loss: Any) -> Any:
    """Return the function of a `functools.partial`; any other loss unchanged."""
    return loss.func if isinstance(loss, partial) else loss


def unwrapped(loss: Any) -> Any:
    """Return the loss that a wrapper of kdkit calls, such as `Masked(loss)`; any other loss unchanged."""
    while is_of_kdkit(loss) and callable(getattr(loss, "loss", None)):
        loss = loss.loss
    return loss


def is_of_kdkit(loss: object) -> bool:
    """Return whether a loss is defined in kdkit."""
    return (getattr(loss, "__module__", None) or "").startswith("kdkit.losses.")


def is_of_torch(loss: Any) -> bool:
    """Return whether a loss is one of `torch.nn` or its `functional` functions, even if kdkit wraps it."""
    function = function_of(unwrapped(loss))
    return isinstance(function, _Loss) or getattr(function, "__module__", None) == "torch.nn.functional"


def _extra_parameters(loss: Loss) -> dict[str, inspect.Parameter]:
    """Return the parameters after the student and the target."""
    call = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        parameters = parameters_by_name(call)
    except (TypeError, ValueError):  # builtins such as `max` have no signature
        return {}
    # The first two are the student and the target, even if they have other names, such as `outputs` and `labels`.
    sides = [name for name, parameter in parameters.items() if parameter.kind is not parameter.KEYWORD_ONLY][:2]
    return {name: parameter for name, parameter in parameters.items() if name not in sides}
