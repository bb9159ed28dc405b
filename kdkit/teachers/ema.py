"""The moving average of a net in training, which teaches it: mean teacher."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kdkit.data.batch import Batch
from kdkit.errors import RecipeError, first_line
from kdkit.losses import BuildContext
from kdkit.nets.net import Net
from kdkit.nets.taps import TapLike
from kdkit.nets.views import View
from kdkit.teachers.base import TeacherOutput, TeacherSession
from kdkit.teachers.frozen import Frozen
from kdkit.teachers.peer import require_net


@dataclass(frozen=True, slots=True)
class Ema:
    """The exponential moving average of a net's weights and buffers while it is trained (Tarvainen and Valpola 2017).

    It answers in eval mode. decay: the share of the old average that is kept at each update; after few updates less,
    1 - 1 / (updates + 1), so that the first weights are soon forgotten. sees: what it is shown, where that differs
    from what the net is shown. Taps on the net's own layers are put on those of the average.
    """

    net: Net[Any]
    decay: float = 0.999
    view: View | None = None

    def __post_init__(self) -> None:
        require_net(self.net, self)
        if isinstance(self.decay, bool) or not isinstance(self.decay, float | int) or not 0 < self.decay < 1:
            raise RecipeError(f"the decay of an average lies between 0 and 1; got {self.decay!r}")

    @property
    def name(self) -> str:
        """What it is called in terms and tables."""
        return f"average of {self.net.name}"

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The classes of its outputs, where they differ from the data's."""
        return self.net.classes

    def open(self, taps: Sequence[TapLike], facts: BuildContext) -> TeacherSession:
        """Return the average, equal to the net as yet."""
        return _Averaging(self, taps)


class _Averaging(TeacherSession):
    """Holds the average and answers for it. Made before the net's own taps are open, which a copy would carry."""

    def __init__(self, teacher: Ema, taps: Sequence[TapLike]) -> None:
        self._source = teacher
        self._network = teacher.net.network
        self._average = _copied(teacher.net)
        pairs = zip(self._network.modules(), self._average.modules(), strict=True)
        parts: dict[int, Any] = {id(module): part for module, part in pairs}
        moved = [copy.deepcopy(tap, dict(parts)) for tap in taps]  # the same tap, on the part of the average
        net = teacher.net
        view = teacher.view if teacher.view is not None else net.view
        self._frozen = Frozen(Net(teacher.name, self._average, view=view, element=net.element), moved)
        self._updates = 0

    def __call__(self, batch: Batch) -> TeacherOutput:
        """Return what the average says of this batch."""
        return self._frozen(batch)

    def dry_run(self, batch: Batch) -> Sequence[TapLike]:
        """Answer once, and return the taps that did not fire."""
        return self._frozen.dry_run(batch)

    @torch.no_grad()
    def on_step(self) -> None:
        """Move the average towards the new weights."""
        self._updates += 1
        kept = min(self._source.decay, 1 - 1 / (self._updates + 1))
        now = self._network.state_dict(keep_vars=True)
        averages = self._average.state_dict(keep_vars=True)
        keys = {id(average): key for key, average in averages.items()}  # tied weights have several keys, and move once
        for key in keys.values():
            average = averages[key]
            if average.is_floating_point() or average.is_complex():
                average.lerp_(now[key].to(average.dtype), 1 - kept)
            else:
                average.copy_(now[key])

    def state_dict(self) -> dict[str, Any]:
        """Return the average, and how often it moved."""
        return {"average": self._average.state_dict(), "updates": self._updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self._average.load_state_dict(state["average"])
        self._updates = state["updates"]

    def close(self) -> None:
        """Take the taps away."""
        self._frozen.close()


def _copied(net: Net[Any]) -> nn.Module:
    """Return a copy of a net's module that is not trained. Raises RecipeError where it cannot be copied."""
    try:
        return copy.deepcopy(net.network).requires_grad_(False)
    except Exception as error:  # a stranger's module may hold anything
        raise RecipeError(
            f"net {net.name!r} cannot be copied, as its average has to be; keep no computed tensors, files or locks in "
            "its modules, and take weight_norm from torch.nn.utils.parametrizations "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
