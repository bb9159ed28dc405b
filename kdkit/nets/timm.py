"""Any model of timm as an `nn.Module`, with its import put off until one is made."""

from typing import Any

from torch import nn

from kdkit.errors import RecipeError, did_you_mean


def create(name: str, **options: Any) -> nn.Module:
    """Return timm's model of this name; `options` are those of `timm.create_model`.

    Raises RecipeError for a name timm does not have.
    """
    import timm  # loads torchvision: seconds

    plain = name.split(".")[0]
    if not timm.is_model(plain):
        raise RecipeError(f"timm has no model {plain!r}; {did_you_mean(plain, timm.list_models())}")
    model: nn.Module = timm.create_model(name, **options)
    return model
