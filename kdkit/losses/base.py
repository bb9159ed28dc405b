"""The one shape that every loss has: `(student, target) -> scalar`, labels and teachers being both just targets."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kdkit.data.dataset import Task

Loss = Callable[..., Tensor]
Asked = frozenset[str]

ASKABLE = ("labels", "ids", "progress", "teacher_outputs")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildContext:
    """What a loss may know when it is built: class names, task, training samples, whether ids exist, batch size.

    tapped: the modules that its target is tapped on, in the order of the taps.
    """

    classes: tuple[str, ...]
    task: Task
    samples: int | None
    ids: bool
    batch_size: int | None = None
    tapped: tuple[nn.Module, ...] = ()


class Built(Protocol):
    """A loss with weights or memory: an `nn.Module` that is built once the shapes are known, before the optimizer.

    student, target: the shapes of what it will compare, one per tap. teacher: the module that answers, if there is one.
    """

    def build(
        self,
        student: tuple[torch.Size, ...],
        target: tuple[torch.Size, ...],
        facts: BuildContext,
        teacher: nn.Module | None,
    ) -> None:
        """Make what the shapes call for. Raises RecipeError where they cannot meet."""
        ...


def loss_name(loss: Callable[..., Any]) -> str:
    """Return what a loss, or what makes it, is called: soft_targets for SoftTargets(...), my_loss for a function."""
    name = getattr(loss, "__name__", None) or type(loss).__name__
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def asked_by(loss: Loss) -> Asked:
    """Return which of labels, ids, progress and the teachers' answers a loss asks for by keyword, or says it `asks`."""
    declared: Any = getattr(loss, "asks", None)
    return frozenset(ASKABLE) & (_beside(loss).keys() if declared is None else frozenset(declared))


def needs_of(loss: Loss) -> Asked:
    """Return what a loss cannot do without: what it asks for without a default, and what its `needs` say."""
    parameters = _beside(loss)
    required = {name for name in ASKABLE if name in parameters and parameters[name].default is inspect.Parameter.empty}
    declared: Any = getattr(loss, "needs", ())
    return frozenset(required) | frozenset(declared)


def _beside(loss: Loss) -> dict[str, inspect.Parameter]:
    """Return the parameters after the two sides, which may well be called `outputs` and `labels` themselves."""
    call = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        parameters = inspect.signature(call).parameters
    except (TypeError, ValueError):  # a builtin says nothing of its arguments
        return {}
    sides = [name for name, each in parameters.items() if each.kind is not each.KEYWORD_ONLY][:2]
    return {name: each for name, each in parameters.items() if name not in sides}
