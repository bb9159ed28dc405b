"""What another net in training says at this very step."""

from dataclasses import dataclass
from typing import Any

from kdkit.errors import RecipeError
from kdkit.nets.net import Net


@dataclass(frozen=True, slots=True)
class Peer:
    """What a net in training says at this step, as a fixed target: mutual learning (DML, Zhang et al. 2018).

    Two nets of one stage that match each other's Peer teach each other; both see the other's outputs from before the
    update, as public code has it, where the paper updates one after the other. A net may also match its own Peer by
    taps, so that its deep layers teach its shallow ones.
    """

    net: Net[Any]

    def __post_init__(self) -> None:
        require_net(self.net, self)

    @property
    def name(self) -> str:
        """What it is called in terms and tables."""
        return f"peer {self.net.name}"

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The classes of its outputs, where they differ from the data's."""
        return self.net.classes


def require_net(net: object, teacher: object) -> None:
    """Raise RecipeError unless a source is made of a Net."""
    if not isinstance(net, Net):
        raise RecipeError(f"{type(teacher).__name__} takes a Net; got a {type(net).__name__}")
