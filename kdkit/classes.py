"""Bring two lists of classes together: what one side lacks is left out, never filled with zeros."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdkit.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Shared:
    """The classes that two sides share: their positions on the first side and on the second one."""

    first: tuple[int, ...]
    second: tuple[int, ...]


def shared(first: Sequence[str], second: Sequence[str], what: str) -> Shared | None:
    """Return where the shared classes stand, or None where both sides are the same. Raises RecipeError without any."""
    if tuple(first) == tuple(second):
        return None
    names = [name for name in first if name in second]
    if not names:
        raise RecipeError(f"{what} share no class: {', '.join(first[:5])} ... against {', '.join(second[:5])} ...")
    return Shared(
        tuple(first.index(name) for name in names),
        tuple(second.index(name) for name in names),
    )


class SharedClasses(nn.Module):
    """Cut outputs, labels or answers down to the classes that a net shares with what it is compared to.

    The positions are buffers, so that they move with the net; nothing is saved.
    """

    first: Tensor
    second: Tensor

    def __init__(self, positions: Shared) -> None:
        super().__init__()
        self.register_buffer("first", torch.tensor(positions.first), persistent=False)
        self.register_buffer("second", torch.tensor(positions.second), persistent=False)

    def columns(self, student: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the shared columns of both, (batch, shared) each."""
        return student.index_select(1, self.first), target.index_select(1, self.second)

    def rows(self, student: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return shared columns and class indices of the samples whose class the net knows, (known, shared), (known,).

        Without any such sample the outputs are empty, and a mean over them is not a number: see `Lesson`.
        """
        matches = labels.unsqueeze(1) == self.second
        known = matches.any(1)
        return student.index_select(1, self.first)[known], matches.int().argmax(1)[known]
