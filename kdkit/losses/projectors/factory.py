"""The kinds of projectors, by name, as an option of losses."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import nn

from kdkit.errors import RecipeError, did_you_mean
from kdkit.losses.projectors.convolutional import Bottleneck, Regressor
from kdkit.losses.projectors.linear import MLP, Projector

Kind = Literal["linear", "conv", "mlp", "bottleneck"]
When = Literal["auto", "always", "never"]

KINDS: dict[str, Callable[[torch.Size, torch.Size], nn.Module]] = {
    "linear": Projector,
    "conv": Regressor,
    "mlp": MLP,
    "bottleneck": Bottleneck,
}


def make_projector(kind: str, given: torch.Size, wanted: torch.Size) -> nn.Module:
    """Return a projector of this kind, from one shape to another. Raises RecipeError where they cannot meet."""
    validate_kind(kind)
    return KINDS[kind](given, wanted)


def validate_kind(kind: str) -> None:
    """Raise RecipeError for a kind of projector that is not there."""
    if not isinstance(kind, str) or kind not in KINDS:
        raise RecipeError(f"{kind!r} is no kind of projector; {did_you_mean(str(kind), KINDS)}")


def validate_when(when: str) -> None:
    """Raise RecipeError unless a projector is made "auto", "always" or "never"."""
    if when not in get_args(When):
        raise RecipeError(f"projector is 'auto', 'always' or 'never'; got {when!r}")
