"""Find the classifier of a teacher: its last linear layer that takes the features of a tap."""

from torch import nn

from kdkit.errors import RecipeError


def last_classifier(teacher: nn.Module | None, channels: int, loss: object) -> nn.Module:
    """Return the last layer of the teacher that maps vectors of so many channels. Raises RecipeError without one."""
    modules = teacher.modules() if teacher is not None else ()
    classifiers = [module for module in modules if is_classifier(module, channels)]
    if not classifiers:
        name = type(loss).__name__
        raise RecipeError(
            f"{name} needs the teacher's classifier, but the teacher has no Linear layer from {channels} channels; "
            f"tap the inputs of its classifier, or pass the layer: {name}(teacher.module.fc)"
        )
    return classifiers[-1]


def is_classifier(module: nn.Module, channels: int) -> bool:
    """Return whether a module maps vectors of so many channels: a Linear layer, or a convolution with a kernel of 1."""
    if isinstance(module, nn.Linear):
        return module.in_features == channels
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return False
    return module.in_channels == channels and module.weight[0].numel() == channels


def require_classifier(classifier: object) -> None:
    """Raise RecipeError unless the option `classifier` of a loss is a layer or None."""
    if classifier is not None and not isinstance(classifier, nn.Module):
        raise RecipeError(f"classifier is a layer, such as teacher.module.fc; got a {type(classifier).__name__}")
