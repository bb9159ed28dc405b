"""The moving average of a network in training as its teacher (mean teacher)."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdkit.data.batch import Batch
from kdkit.losses.base import BuildContext
from kdkit.nets.moving_average import MovingAverage, validate_decay
from kdkit.nets.taps import TapLike
from kdkit.nets.views import Call, View, as_view
from kdkit.teachers.base import OnlineTeacher, TeacherSession
from kdkit.teachers.frozen import Frozen


@dataclass(frozen=True, slots=True)
class Ema(OnlineTeacher):
    """The exponential moving average of a network's weights and buffers during training (Tarvainen and Valpola 2017).

    The average runs in eval mode. Taps on the network's layers are moved to the layers of the average.
    decay: the weight of the old average in each update. In the first updates it is at most 1 - 1 / (updates + 1), so
    that the initial weights are soon forgotten. 0 for the network itself, as of its last update, which with a `view`
    teaches a strongly augmented sample by a weakly augmented one (FixMatch).
    view: the inputs of the average, if they differ from the network's.
    """

    decay: float = 0.999
    view: View | Callable[[Batch], Call] | None = None

    def __post_init__(self) -> None:
        OnlineTeacher.__post_init__(self)
        validate_decay(self.decay)
        if self.view is not None:
            as_view(self.view, self.name)  # raises an error for any other object

    @property
    def name(self) -> str:
        """The name in terms and tables."""
        return f"average of {self.net.name}"

    def open(self, taps: Sequence[TapLike], context: BuildContext) -> TeacherSession:
        """Return a session whose average starts as a copy of the network."""
        return _EmaSession(self, taps)


class _EmaSession(Frozen):
    """Updates and runs the average. Must be opened before the network's taps, whose hooks would be copied too."""

    def __init__(self, teacher: Ema, taps: Sequence[TapLike]) -> None:
        net = teacher.net
        self._network = net.network
        module = net.copy_network().requires_grad_(False)
        self._average = MovingAverage(module, teacher.decay, ramp=True)
        # With this memo, the deep copy of a tap refers to the copied modules.
        pairs = zip(self._network.modules(), module.modules(), strict=True)
        memo: dict[int, Any] = {id(part): copied for part, copied in pairs}
        moved_taps = [copy.deepcopy(tap, dict(memo)) for tap in taps]
        average = copy.copy(net)  # keeps all other options, such as the element and the order of its outputs
        average.name, average.module = teacher.name, module
        average.view = net.view if teacher.view is None else as_view(teacher.view, teacher.name)
        super().__init__(average, moved_taps)

    def on_step(self) -> None:
        """Move the average towards the new weights."""
        self._average.update(self._network)

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        super().apply(change)
        self._average.apply(change)

    def state_dict(self) -> dict[str, Any]:
        return self._average.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._average.load_state_dict(state)
