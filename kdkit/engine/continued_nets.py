"""Find networks that a run would train further from the weights of an earlier run in this process."""

from collections.abc import Mapping
from weakref import WeakKeyDictionary

from torch import nn

from kdkit.recipe.recipe import Recipe

# The modules that runs have trained, with a part of their weights, which shows whether they have changed since.
_TRAINED: "WeakKeyDictionary[nn.Module, list[list[float]]]" = WeakKeyDictionary()


def continued_nets(recipe: Recipe) -> list[str]:
    """Return the names of networks to train whose module was trained in an earlier run, and not changed since."""
    weights, modules = first_weights(recipe), _trained_modules(recipe)
    return [name for name, module in modules.items() if module in _TRAINED and _TRAINED[module] == weights[module]]


def mark_trained(recipe: Recipe, before: Mapping[nn.Module, list[list[float]]]) -> None:
    """Remember the modules whose weights a run has changed. before: the `first_weights` before the run."""
    _TRAINED.update({module: now for module, now in first_weights(recipe).items() if now != before.get(module)})


def first_weights(recipe: Recipe) -> dict[nn.Module, list[list[float]]]:
    """Return the first numbers of each parameter of the modules that a recipe trains."""
    return {
        module: [parameter.detach().flatten()[:16].tolist() for parameter in module.parameters()]
        for module in _trained_modules(recipe).values()
    }


def _trained_modules(recipe: Recipe) -> dict[str, nn.Module]:
    """Return the modules that a recipe trains, by the name of their net."""
    nets = {net.name: net.module for stage in recipe.stages for net in stage.objectives}
    return {name: module for name, module in nets.items() if getattr(module, "__hash__", None) is not None}
