"""Find the classifier of a teacher: its last linear layer that takes the features of a tap."""

from typing import Any

from torch import nn

from kdkit.errors import RecipeError


def require_classifier(classifier: object) -> None:
    """Raise RecipeError unless the option `classifier` of a loss is a layer or None."""
    if classifier is not None and not isinstance(classifier, nn.Module):
        raise RecipeError(f"classifier is a layer, such as teacher.module.fc; got a {type(classifier).__name__}")


def find_classifier(classifier: nn.Module | None, teacher: nn.Module | None, channels: int, loss: object) -> Any:
    """Return the option `classifier` of a loss, by default the teacher's last layer that takes this many channels.

    Raises RecipeError if there is none, or if the option takes other features.
    """
    name = type(loss).__name__
    if classifier is not None:
        if not _maps_vectors(classifier, channels):
            raise RecipeError(
                f"{name}'s classifier is a Linear layer from the {channels} channels of the teacher's features; got "
                f"{classifier}"
            )
        return classifier
    modules = teacher.modules() if teacher is not None else ()
    classifiers = [module for module in modules if _maps_vectors(module, channels)]
    if not classifiers:
        raise RecipeError(
            f"{name} needs the teacher's classifier, but the teacher has no Linear layer from {channels} channels; "
            f"tap the inputs of its classifier, or pass the layer: {name}(teacher.module.fc)"
        )
    return classifiers[-1]


def _maps_vectors(module: nn.Module, channels: int) -> bool:
    """Return whether a module maps vectors of this many channels: a Linear layer or a convolution of kernel 1."""
    if isinstance(module, nn.Linear):
        return module.in_features == channels
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return False
    return module.in_channels == channels and module.weight[0].numel() == channels
