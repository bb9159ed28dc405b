"""One run among many: what it is called, what makes its recipe, what it needs, and what came of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kdkit.errors import RecipeError
from kdkit.recipe.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of a study.

    name: of its folder. recipe: a function that returns a Recipe; options: what it is called with, recorded as text.
    needs: cells that come before, by the parameter of `recipe` that is given their folders: a Path for a name, a tuple
    of them for a tuple of names.

    Raises RecipeError for a name that can be no folder's.
    """

    name: str
    recipe: Callable[..., Recipe]
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.name or not all(letter.isalnum() or letter in "-_+" for letter in self.name):
            raise RecipeError(f"a cell's name is made of letters, digits, '-', '_' and '+'; got {self.name!r}")

    @property
    def needed(self) -> tuple[str, ...]:
        """The names of all cells that it needs."""
        return tuple(name for names in self.needs.values() for name in listed(names))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """What came of a cell. seconds: of this go. error: why it failed, or why what it needs is not there."""

    trial: Trial
    state: Literal["done", "skipped", "failed", "waiting"]
    seconds: float = 0.0
    error: Exception | None = None


def listed(names: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return one name or several as several."""
    return (names,) if isinstance(names, str) else names
