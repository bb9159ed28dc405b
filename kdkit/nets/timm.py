"""Create timm models, and taps on their stages."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from kdkit.errors import RecipeError, did_you_mean
from kdkit.nets.elements import pick_tensor
from kdkit.nets.taps import Tap


def create(name: str, **options: Any) -> nn.Module:
    """Return the timm model with this name; `options` are those of `timm.create_model`.

    Raises RecipeError if timm has no model with this name.
    """
    import timm  # late: it imports torchvision, which takes seconds

    architecture = name.split(".")[0]  # "resnet18.a1_in1k" is an architecture and a weight tag
    if ":" not in name and not timm.is_model(architecture):  # not a place, such as "hf-hub:user/model"
        raise RecipeError(f"timm has no model {architecture!r}; {did_you_mean(architecture, timm.list_models())}")
    model: nn.Module = timm.create_model(name, **options)
    return model


def timm_tap(model: nn.Module, index: int) -> Tap:
    """Return a tap on a stage of a timm model, numbered as in its `feature_info`; -1 is the last stage.

    It captures what a model with `features_only=True` returns, (batch, channels, height, width). For a transformer,
    this is the map of its patches, without class and register tokens. If the number of tokens is not the number of
    patches, as for images of another size, it captures (batch, channels, tokens).
    Raises RecipeError if the model has no `feature_info` or no such stage.
    """
    info: Any = getattr(model, "feature_info", None)
    if not info:
        raise RecipeError(f"{type(model).__name__} has no feature_info, so its stages are unknown; is it a timm model?")
    entries: Sequence[dict[str, Any]] = list(info)
    if not -len(entries) <= index < len(entries):
        raise RecipeError(f"{type(model).__name__} has stages 0 to {len(entries) - 1}; got {index}")
    form = _StageForm(
        channels=entries[index].get("num_chs"),
        channels_last=getattr(model, "output_fmt", "NCHW") != "NCHW",
        prefix=getattr(model, "num_prefix_tokens", 0),
        grid=tuple(getattr(getattr(model, "patch_embed", None), "grid_size", None) or ()),
    )
    return Tap(model.get_submodule(entries[index]["module"]), element=form, channels_last=False)


def token_stage(model: nn.Module, path: str) -> int | None:
    """Return which stage of a timm model a layer is, if its tokens are not all patches; otherwise None."""
    if not getattr(model, "num_prefix_tokens", 0):
        return None
    stages = [entry["module"] for entry in getattr(model, "feature_info", None) or ()]
    return stages.index(path) if path in stages else None


@dataclass(frozen=True)
class _StageForm:
    """Converts the output of a stage to (batch, channels, height, width).

    channels: the width of the stage; None if unknown. channels_last: whether timm declares maps as (batch, height,
    width, channels), which some models with such maps do not. prefix: the number of class and register tokens. grid:
    the height and width in patches; () if unknown.
    """

    channels: int | None
    channels_last: bool
    prefix: int
    grid: tuple[int, ...]

    def __call__(self, value: Any) -> Tensor:
        """Return the map, or (batch, channels, tokens) if the number of tokens is not the number of patches."""
        feature = pick_tensor(value, None, "a stage of a timm model")
        if feature.ndim == 4:
            is_last = self.channels_last or (feature.shape[1] != self.channels == feature.shape[-1])
            return feature.movedim(-1, 1) if is_last else feature
        if feature.ndim != 3:
            return feature
        patches = math.prod(self.grid)
        if self.grid and feature.shape[1] != patches:  # some models add their class token in a later stage
            feature = feature[:, self.prefix :]
        tokens = feature.movedim(-1, 1)
        return tokens.reshape(*tokens.shape[:2], *self.grid) if tokens.shape[2] == patches else tokens
