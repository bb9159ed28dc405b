"""A trial, which is one run of a study, and its result."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kdkit.errors import RecipeError, describe
from kdkit.recipe.recipe import Recipe
from kdkit.utils.paths import preserve_working_directory
from kdkit.utils.randomness import preserve_rng_state, seed_everything
from kdkit.utils.validation import validate_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of a study.

    name: also the name of its folder, such as "alpha=0.5,seed=1". recipe: a function that returns a Recipe. options:
    keyword arguments of `recipe`, recorded as text. needs: trials that must finish first; maps a parameter of `recipe`
    to the name of a trial, or to a tuple of names. `recipe` gets their folders: a Path for a name, a tuple of Paths for
    a tuple. command: the record of a command that repeats this run alone, which `kdkit rerun` executes.

    Raises RecipeError if the name cannot be the name of a folder, or if `recipe` is no function.
    """

    name: str
    recipe: Callable[..., Recipe]
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    seed: int = 0
    command: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        recipe = getattr(self.recipe, "__qualname__", type(self.recipe).__name__)
        options = [repr(self.name), f"recipe={recipe}", *(f"{name}={value!r}" for name, value in self.options.items())]
        needs = [f"needs={dict(self.needs)}"] if self.needs else []
        return f"Trial({', '.join([*options, *needs, f'seed={self.seed}'])})"

    def __post_init__(self) -> None:
        validate_name("trial", self.name, "-_+=,")
        if not callable(self.recipe):
            raise RecipeError(
                f"the recipe of trial {self.name!r} must be a function that returns a Recipe, so that it is called "
                f"after the seed is set; got {describe(self.recipe)}"
            )

    @property
    def dependencies(self) -> tuple[str, ...]:
        """The names of all trials in `needs`."""
        return tuple(name for names in self.needs.values() for name in as_names(names))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """The result of a trial.

    state: "finished", "skipped" (it was finished before), "failed", or "blocked" (a trial in its `needs` failed or is
    blocked). seconds: its duration, without earlier attempts. error: why it failed or is blocked.
    """

    trial: Trial
    state: Literal["finished", "skipped", "failed", "blocked"]
    seconds: float = 0.0
    error: Exception | None = None


def recipe_of(trial: Trial) -> Recipe:
    """Return the recipe of a trial that needs no others, called with the random numbers of its run."""
    with preserve_rng_state(), preserve_working_directory():
        seed_everything(trial.seed)
        return trial.recipe(**trial.options)


def as_names(names: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return a value of `Trial.needs` as a tuple of names."""
    return (names,) if isinstance(names, str) else names
