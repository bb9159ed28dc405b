"""Several teachers that one term matches together."""

from dataclasses import dataclass
from typing import Any

from kdkit.errors import RecipeError
from kdkit.nets.net import Net
from kdkit.teachers.base import require_net


@dataclass(frozen=True, slots=True, init=False)
class Teachers:
    """Several frozen networks that one term matches together: the target is a tuple with one output per network.

    Each network uses its own view. With taps, target=(tap on the first, tap on the second, ...). The loss must take a
    tuple, as `PerTeacher` does, which weights the teachers per sample. If the networks have different classes, only
    the shared classes are compared.
    """

    members: tuple[Net[Any], ...]

    def __init__(self, *members: Net[Any]) -> None:
        for member in members:
            require_net(member, self)
        if len(set(members)) < max(len(members), 2):
            names = ", ".join(member.name for member in members) or "none"
            raise RecipeError(f"Teachers(...) takes at least two different nets; got {names}")
        object.__setattr__(self, "members", members)

    @property
    def name(self) -> str:
        """The name in terms and tables."""
        return " and ".join(member.name for member in self.members)
