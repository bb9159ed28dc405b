"""Ask those who are matched: what they say of a batch, and what they are told of it after."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from kdkit.data import Batch
from kdkit.taps import Tapping


class Answer(NamedTuple):
    """What a source says of a batch: outputs (batch, classes), and a feature for each tap, in their order.

    known: (batch,) bool, whether it has an answer for each sample; None where it has for all. What it does not know is
    put in by the lesson: what the net itself says now, which moves nothing.
    """

    output: Tensor
    features: tuple[Tensor, ...] = ()
    known: Tensor | None = None


Answers = Mapping[str, Answer]


class Respondent:
    """A source made ready for a stage. What it learns or remembers is in its state dict.

    In each step it is asked, then observes; after an update and an epoch it is told so. Only `ask` has to be written.
    """

    def ask(self, batch: Batch) -> Answer:
        """Return what it says of this batch."""
        raise NotImplementedError

    def rehearse(self, batch: Batch) -> Sequence[Tapping]:
        """Answer once for a tiny batch, to see what it needs, and return the taps that did not fire."""
        return ()

    def observe(self, batch: Batch, outputs: Mapping[str, Tensor]) -> None:
        """Be told what the nets in training said of this batch, (batch, classes) by name of the net."""

    def stepped(self) -> None:
        """Be told that the weights were updated."""

    def end_epoch(self) -> None:
        """Be told that an epoch is over."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""

    def close(self) -> None:
        """Leave everything as it was."""


def ask(respondents: Mapping[str, Respondent], batch: Batch) -> dict[str, Answer]:
    """Return every source's answer to this batch, by name."""
    return {name: each.ask(batch) for name, each in respondents.items()}
