"""Stages by hand, for what no schedule says."""

from collections.abc import Sequence

from kdkit.errors import RecipeError
from kdkit.recipe import Stage


class Stages:
    """These stages, in this order."""

    def __init__(self, *stages: Stage) -> None:
        if not stages or not all(isinstance(stage, Stage) for stage in stages):
            raise RecipeError("Stages takes one Stage after the other: Stages(Stage({net: goal}, training), ...)")
        self._stages = stages

    def stages(self) -> Sequence[Stage]:
        """Return them."""
        return self._stages
