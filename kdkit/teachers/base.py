"""The interfaces of teachers: the teacher itself, the session that it opens for a stage, and its outputs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from kdkit.data.batch import Batch
from kdkit.errors import RecipeError
from kdkit.nets.net import Net
from kdkit.nets.taps import TapLike
from kdkit.utils.reprs import describe_array


@runtime_checkable
class Teacher(Protocol):
    """Anything a term can match. A Net is frozen: it runs in eval mode and without gradients.

    A user-defined teacher must be hashable, and have a method `open(taps, context)` that returns a TeacherSession.
    """

    @property
    def name(self) -> str:
        """The name of the teacher, unique in a recipe."""
        ...


class TeacherOutput(NamedTuple):
    """The output of a teacher for a batch, (batch, classes), and a feature for each tap, in the order of the taps.

    mask: (batch,) bool, True for samples that have a teacher output; None if all samples have one. A term is computed
    for these samples only, and multiplied by their share of the batch, unless it is a sum over samples. If the mask is
    on the CPU, no synchronization with the device is needed. Features are never masked.
    """

    output: Tensor
    features: tuple[Tensor, ...] = ()
    mask: Tensor | None = None

    def __repr__(self) -> str:
        arrays = [f"{name}={describe_array(value)}" for name, value in self._asdict().items() if value is not None]
        return f"TeacherOutput({', '.join(arrays)})"


TeacherOutputs = Mapping[str, TeacherOutput]


class TeacherSession:
    """A teacher that is open in a stage. Only `__call__` must be implemented.

    In each step, the session is called once with the batch, then `observe` is called, and then, if the step ends with
    an optimizer update, `on_step`. Everything that changes during training belongs in the state dict, which is part of
    the checkpoint.
    """

    def __call__(self, batch: Batch) -> TeacherOutput:
        """Return the output for this batch. Called without gradients."""
        raise NotImplementedError

    def dry_run(self, batch: Batch) -> Sequence[TapLike]:
        """Run once on a tiny batch, allocate memory if needed, and return the taps that did not fire."""
        return ()

    def observe(self, batch: Batch, outputs: Mapping[str, Tensor]) -> None:
        """Receive the detached outputs of the students for this batch: network name to (batch, classes)."""

    def on_step(self) -> None:
        """Called after each optimizer update."""

    def on_epoch_end(self) -> None:
        """Called after each epoch."""

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply this function to all tensors of the session. Called when a Distiller is moved or converted."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return everything that changes during training."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state."""

    def close(self) -> None:
        """Remove taps and restore modes."""


def observers(sessions: Iterable[TeacherSession]) -> list[TeacherSession]:
    """Return the sessions that override `observe`, which are the only ones that need the call."""
    return [session for session in sessions if type(session).observe is not TeacherSession.observe]


@dataclass(frozen=True, slots=True)
class OnlineTeacher:
    """Base class of teachers that follow a network in training: its average, its past or its current outputs."""

    net: Net[Any]

    def __post_init__(self) -> None:
        require_net(self.net, self)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The classes of its outputs, if they differ from the data's."""
        return self.net.classes


def require_net(net: object, teacher: object) -> None:
    """Raise RecipeError unless `net`, from which a teacher is created, is a Net."""
    if not isinstance(net, Net):
        raise RecipeError(f"{type(teacher).__name__} takes a Net; got a {type(net).__name__}")


def require_output(name: str, output: object, batch: Batch, taps: Sequence[TapLike]) -> None:
    """Raise RecipeError unless `output` is a TeacherOutput that fits the batch and has a feature for each tap."""
    if not isinstance(output, TeacherOutput):
        raise RecipeError(f"{name!r} must return TeacherOutput(output, features, mask); got a {type(output).__name__}")
    if not isinstance(output.output, Tensor):
        raise RecipeError(
            f"the output of {name!r} must be a tensor; got a {type(output.output).__name__}; "
            "use torch.from_numpy(...).float() for a NumPy array"
        )
    if len(output.features) != len(taps):
        raise RecipeError(
            f"{name!r} must return a feature for each of the {len(taps)} taps of its terms; got {len(output.features)}"
        )
    mask = output.mask
    if mask is not None and taps:
        raise RecipeError(f"{name!r} may mask outputs, but not features; return mask=None if it is tapped")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (len(batch),)):
        raise RecipeError(
            f"the mask of {name!r} must be True or False for each sample, ({len(batch)},) of torch.bool; got "
            f"{tuple(mask.shape)} of {mask.dtype}"
        )
