"""Create a projector by the name of its kind, which is an option of many losses."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from kdkit.errors import RecipeError, did_you_mean
from kdkit.losses.projectors.convolutional import Bottleneck, Regressor
from kdkit.losses.projectors.linear import MLP, Orthogonal, Projector

ProjectorKind = Literal["linear", "conv", "mlp", "bottleneck", "orthogonal"]
# "auto" creates a projector if the shapes differ, "always" in any case, and "never" refuses shapes that differ.
ProjectorMode = Literal["auto", "always", "never"]

PROJECTORS: dict[str, Callable[[torch.Size, torch.Size], nn.Module]] = {
    "linear": Projector,
    "conv": Regressor,
    "mlp": MLP,
    "bottleneck": Bottleneck,
    "orthogonal": Orthogonal,
}


def make_projector(kind: str, input_shape: torch.Size, target_shape: torch.Size) -> nn.Module:
    """Return a projector from one shape to another. Raises RecipeError for an unknown kind, or unsupported shapes."""
    validate_projector_kind(kind)
    return PROJECTORS[kind](input_shape, target_shape)


def validate_projector_kind(kind: str) -> None:
    """Raise RecipeError for an unknown kind of projector."""
    if not isinstance(kind, str) or kind not in PROJECTORS:
        raise RecipeError(f"{kind!r} is not a kind of projector; {did_you_mean(str(kind), PROJECTORS)}")
