"""A net that answers as it is: in eval mode and without gradients."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from kdkit.data import Batch
from kdkit.modes import evaluating
from kdkit.net import Net
from kdkit.sources.respondent import Answer, Respondent
from kdkit.taps import Listening, Tapping


class Frozen(Respondent):
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
    def rehearse(self, batch: Batch) -> Sequence[Tapping]:
        """Answer once, note which tapped tensors are changed in place, and return the taps that did not fire."""
        self._listening.clear()
        self.net(batch)
        self._listening.keep_copies()
        return self._listening.silent()

    def close(self) -> None:
        """Take the taps away and give every module its mode back."""
        self._listening.close()
        self._open.close()
