"""Ask those who are matched: what they say of a batch, and what they are told of it after."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from kdkit.data.batch import Batch
from kdkit.errors import RecipeError
from kdkit.nets.taps import TapLike


@runtime_checkable
class Teacher(Protocol):
    """What can be matched. A Net answers frozen: in eval mode, without gradients."""

    @property
    def name(self) -> str:
        """Unique in a recipe."""
        ...


class TeacherOutput(NamedTuple):
    """What a source says of a batch: outputs (batch, classes), and a feature for each tap, in their order.

    known: (batch,) bool, whether it has outputs for each sample; None where it has for all. What it does not know is
    put in by the lesson: what the net that learns from it says now, which moves nothing. Features are always known.
    """

    output: Tensor
    features: tuple[Tensor, ...] = ()
    known: Tensor | None = None


TeacherOutputs = Mapping[str, TeacherOutput]


def require_output(name: str, answer: object, batch: Batch, taps: Sequence[TapLike]) -> None:
    """Raise RecipeError unless this is an Answer to a batch, with a feature for each tap."""
    if not isinstance(answer, TeacherOutput):
        raise RecipeError(f"{name!r} answers with Answer(output, features, known); got a {type(answer).__name__}")
    if len(answer.features) != len(taps):
        raise RecipeError(
            f"{name!r} answers with a feature for each of {len(taps)} taps that its terms ask for; got "
            f"{len(answer.features)}"
        )
    known = answer.known
    if known is not None and taps:
        raise RecipeError(
            f"{name!r} may leave outputs unknown, but no features; answer with known=None where it is tapped"
        )
    if known is not None and (known.dtype != torch.bool or known.shape != (len(batch),)):
        raise RecipeError(
            f"what {name!r} knows is True or False for each sample, ({len(batch)},) of torch.bool; got "
            f"{tuple(known.shape)} of {known.dtype}"
        )


class TeacherSession:
    """A source made ready for a stage. What it learns or remembers is in its state dict.

    In each step it is asked, then observes; after an update and an epoch it is told so. Only `ask` has to be written.
    """

    def __call__(self, batch: Batch) -> TeacherOutput:
        """Return what it says of this batch."""
        raise NotImplementedError

    def dry_run(self, batch: Batch) -> Sequence[TapLike]:
        """Answer once for a tiny batch, to see what it needs, and return the taps that did not fire."""
        return ()

    def observe(self, batch: Batch, outputs: Mapping[str, Tensor]) -> None:
        """Be told what the nets in training said of this batch, (batch, classes) by name of the net."""

    def on_step(self) -> None:
        """Be told that the weights were updated."""

    def on_epoch_end(self) -> None:
        """Be told that an epoch is over."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""

    def close(self) -> None:
        """Leave everything as it was."""


def run_teachers(sessions: Mapping[str, TeacherSession], batch: Batch) -> dict[str, TeacherOutput]:
    """Return every source's answer to this batch, by name."""
    return {name: each(batch) for name, each in sessions.items()}
