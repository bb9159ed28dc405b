"""The moving average of a network in training as its teacher: mean teacher."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch
from kdkit.errors import RecipeError
from kdkit.losses.base import BuildContext
from kdkit.nets.net import Net
from kdkit.nets.taps import TapLike
from kdkit.nets.views import View, validate_view
from kdkit.teachers.base import TeacherOutput, TeacherSession, require_net
from kdkit.teachers.frozen import Frozen
from kdkit.utils.validation import is_number

_HALF_PRECISION = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Ema:
    """The exponential moving average of a network's weights and buffers during training (Tarvainen and Valpola 2017).

    It runs in eval mode.
    decay: the share of the old average at each update. It is smaller at first, 1 - 1 / (updates + 1), so that the
    initial weights are soon forgotten. view: the inputs of the average, if they differ from those of the network. Taps
    on the network's own layers are moved to the layers of the average.
    """

    net: Net[Any]
    decay: float = 0.999
    view: View | None = None

    def __post_init__(self) -> None:
        require_net(self.net, self)
        if not is_number(self.decay) or not 0 < self.decay < 1:
            raise RecipeError(f"the decay of an average must be between 0 and 1; got {self.decay!r}")
        if self.view is not None:
            validate_view(self.view, self.name)

    @property
    def name(self) -> str:
        """The name in terms and tables."""
        return f"average of {self.net.name}"

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The classes of its outputs, if they differ from the data's."""
        return self.net.classes

    def open(self, taps: Sequence[TapLike], context: BuildContext) -> TeacherSession:
        """Return a session with a copy of the network, which is equal to it at first."""
        return _EmaSession(self, taps)


class _EmaSession(TeacherSession):
    """Updates and runs the average. It is opened before the taps of the network, whose hooks a copy would carry."""

    def __init__(self, teacher: Ema, taps: Sequence[TapLike]) -> None:
        net = teacher.net
        self._decay = teacher.decay
        self._network = net.network
        self._average = net.copy_network().requires_grad_(False)
        # A deep copy of a tap with this memo refers to the copies of the modules instead of the modules.
        pairs = zip(self._network.modules(), self._average.modules(), strict=True)
        memo: dict[int, Any] = {id(module): part for module, part in pairs}
        moved_taps = [copy.deepcopy(tap, dict(memo)) for tap in taps]
        average = copy.copy(net)  # with all other options, such as the element and the order of its outputs
        average.name, average.module = teacher.name, self._average
        average.view = teacher.view if teacher.view is not None else net.view
        self._frozen = Frozen(average, moved_taps)
        self._updates = 0
        # By key, in float32: an update by 1 - decay is mostly lost in the rounding of a number in half precision.
        self._precise: dict[str, Tensor] = {}

    def __call__(self, batch: Batch) -> TeacherOutput:
        return self._frozen(batch)

    def dry_run(self, batch: Batch) -> Sequence[TapLike]:
        return self._frozen.dry_run(batch)

    @torch.no_grad()
    def on_step(self) -> None:
        """Move the average towards the new weights."""
        self._updates += 1
        decay = min(self._decay, 1 - 1 / (self._updates + 1))
        current = self._network.state_dict(keep_vars=True)
        averages = self._average.state_dict(keep_vars=True)
        # Tied weights have several keys in a state dict, and must move once.
        keys = {id(average): key for key, average in averages.items()}
        for key in keys.values():
            average, value = averages[key], current[key]
            is_frozen = isinstance(value, nn.Parameter) and not value.requires_grad
            if average.dtype in _HALF_PRECISION and not is_frozen:
                if key not in self._precise:
                    self._precise[key] = average.detach().float()
                average.copy_(self._precise[key].lerp_(value.float(), 1 - decay))
            elif average.is_floating_point() or average.is_complex():
                average.lerp_(value.to(average.dtype), 1 - decay)
            else:  # counters of batch norm, and masks
                average.copy_(value)

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        self._frozen.apply(change)
        self._precise = {key: change(precise).float() for key, precise in self._precise.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._average.state_dict() | self._precise, "updates": self._updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        average = self._average.state_dict()
        self._average.load_state_dict(state["average"])  # rounds to the precision of the network
        self._precise = {
            key: saved.to(average[key].device, copy=True)
            for key, saved in state["average"].items()
            if saved.dtype == torch.float32 and average[key].dtype in _HALF_PRECISION
        }
        self._updates = state["updates"]

    def close(self) -> None:
        self._frozen.close()
