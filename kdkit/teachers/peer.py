"""The current output of another network in training as a teacher (mutual learning)."""

from dataclasses import dataclass

from kdkit.teachers.base import OnlineTeacher


@dataclass(frozen=True, slots=True)
class Peer(OnlineTeacher):
    """The detached output of a network in training at the same step: mutual learning (DML, Zhang et al. 2018).

    Two networks in one stage teach each other if each matches the other's Peer. Both use the outputs before the update,
    like the paper's public code; the paper itself updates one network after the other. A network may also match its own
    Peer with taps, so that its deep layers teach its shallow layers.
    """

    @property
    def name(self) -> str:
        """The name in terms and tables."""
        return f"peer {self.net.name}"
