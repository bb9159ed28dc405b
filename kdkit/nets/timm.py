"""Models of timm as networks, and taps on their stages."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from kdkit.errors import RecipeError, did_you_mean
from kdkit.nets.taps import Tap


def create(name: str, **options: Any) -> nn.Module:
    """Return the timm model of this name; `options` are those of `timm.create_model`.

    Raises RecipeError if timm has no model of this name.
    """
    import timm  # late: it imports torchvision, which takes seconds

    architecture = name.split(".")[0]  # "resnet18.a1_in1k" is an architecture and a tag of its weights
    if not timm.is_model(architecture):
        raise RecipeError(f"timm has no model {architecture!r}; {did_you_mean(architecture, timm.list_models())}")
    model: nn.Module = timm.create_model(name, **options)
    return model


def timm_tap(model: nn.Module, index: int) -> Tap:
    """Return a tap on a stage of a timm model, numbered as in its `feature_info`; -1 is the last stage.

    It captures (batch, channels, height, width), or (batch, channels, tokens) for a transformer.
    Raises RecipeError for a model without `feature_info` and for a stage that it does not have.
    """
    info: Any = getattr(model, "feature_info", None)
    if not info:
        raise RecipeError(f"{type(model).__name__} has no feature_info, so its stages are unknown; is it a timm model?")
    entries: Sequence[dict[str, Any]] = list(info)
    if not -len(entries) <= index < len(entries):
        raise RecipeError(f"{type(model).__name__} has stages 0 to {len(entries) - 1}; got {index}")
    # timm models declare NHWC, but not tokens: their number of dimensions shows them
    channels_last = getattr(model, "output_fmt", "NCHW") != "NCHW"
    module = model.get_submodule(entries[index]["module"])
    return Tap(module, element=None if channels_last else _channels_second, channels_last=channels_last)


def _channels_second(feature: Tensor) -> Tensor:
    # (batch, tokens, channels) -> (batch, channels, tokens); (batch, channels, height, width) stays
    return feature.movedim(-1, 1) if feature.ndim == 3 else feature
