"""Ask what can be matched: a frozen net answers a batch with its outputs and its tapped features."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from kdkit.data import Batch
from kdkit.errors import RecipeError
from kdkit.goal import Source
from kdkit.modes import evaluating
from kdkit.net import Net
from kdkit.taps import Listening, Tapping


class Answer(NamedTuple):
    """What a source says of a batch: outputs (batch, classes), and a feature for each tap, in their order."""

    output: Tensor
    features: tuple[Tensor, ...]


Answers = Mapping[str, Answer]


class Respondent(Protocol):
    """A source made ready for a stage."""

    def ask(self, batch: Batch) -> Answer:
        """Return what it says of this batch."""
        ...

    def close(self) -> None:
        """Leave everything as it was."""
        ...


class Frozen:
    """A net that answers in eval mode and without gradients, and is left in the mode it was in."""

    def __init__(self, net: Net[Any], taps: Sequence[Tapping]) -> None:
        self.net = net
        self._listening = Listening(taps)
        self._open = ExitStack()
        self._open.enter_context(evaluating(net.module))

    @torch.no_grad()
    def ask(self, batch: Batch) -> Answer:
        """Return what it says of this batch."""
        self._listening.clear()
        output = self.net(batch)
        return Answer(output, self._listening.take())

    @torch.no_grad()
    def rehearse(self, batch: Batch) -> list[Tapping]:
        """Answer once, note which tapped tensors are changed in place, and return the taps that did not fire."""
        self._listening.clear()
        self.net(batch)
        self._listening.keep_copies()
        return self._listening.silent()

    def close(self) -> None:
        """Take the taps away and give every module its mode back."""
        self._listening.close()
        self._open.close()


def respondent(source: Source, taps: Sequence[Tapping]) -> Frozen:
    """Make a source ready to be asked."""
    if isinstance(source, Net):
        return Frozen(source, taps)
    raise RecipeError(f"{source.name!r} is a {type(source).__name__}, which cannot be matched; expected a Net")


def ask(respondents: Mapping[str, Respondent], batch: Batch) -> dict[str, Answer]:
    """Return every source's answer to this batch, by name."""
    return {name: each.ask(batch) for name, each in respondents.items()}
