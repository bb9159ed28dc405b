"""Several teachers, matched together by one loss."""

from dataclasses import dataclass
from typing import Any

from kdkit.errors import RecipeError
from kdkit.nets.net import Net
from kdkit.teachers.peer import require_net


@dataclass(frozen=True, slots=True, init=False)
class Teachers:
    """Several teachers that one term matches together: the target is a tuple, one answer for each of them.

    Each sees what its own view shows it. With taps, target=(tap of the first, tap of the second, ...). The loss is one
    that takes a tuple, such as `PerTeacher`, which weighs the teachers for each sample. Where their classes differ, those
    that all share are compared.
    """

    members: tuple[Net[Any], ...]

    def __init__(self, *members: Net[Any]) -> None:
        for each in members:
            require_net(each, self)
        if len(set(members)) < max(len(members), 2):
            given = ", ".join(each.name for each in members) or "none"
            raise RecipeError(f"a Panel takes at least two nets, each once; got {given}")
        object.__setattr__(self, "members", members)

    @property
    def name(self) -> str:
        """What it is called in terms and tables."""
        return " and ".join(each.name for each in self.members)
