"""A participant: a network under a name, and what it sees of a batch."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdkit.data.batch import Batch
from kdkit.errors import RecipeError, did_you_mean
from kdkit.nets.views import Element, Inputs, View, picked

M = TypeVar("M", bound=Callable[..., Any], covariant=True)


class Net(Generic[M]):
    """A network that teaches, learns, or does first one and then the other.

    name: unique in a recipe; it names folders, terms and rows of tables.
    module: an `nn.Module`, or for a teacher behind an API any callable, which then needs a `version`.
    sees: what it is shown of a batch.
    element: which part of what it returns are its outputs, (batch, classes), whenever it returns more than a tensor.
    classes: their names, where they differ from the data's. What one side lacks is left out of a comparison.
    weights: a .safetensors file, or a torch file of a plain state dict, loaded at once.
    trained: says that the module already carries trained weights, so that it may teach without a stage of its own.

    Raises RecipeError where these do not fit together.
    """

    def __init__(
        self,
        name: str,
        module: M,
        *,
        view: View | None = None,
        element: Element = None,
        classes: Sequence[str] | None = None,
        weights: str | Path | None = None,
        trained: bool = False,
        version: str | None = None,
    ) -> None:
        if not name or not all(letter.isalnum() or letter in "-_ +" for letter in name):
            raise RecipeError(f"a net's name is made of letters, digits, '-', '_', '+' and spaces; got {name!r}")
        if not callable(module):
            raise RecipeError(f"net {name!r} needs an nn.Module or a callable; got {type(module).__name__}")
        if not isinstance(module, nn.Module) and version is None:
            raise RecipeError(
                f"net {name!r} is a plain callable, whose weights kdkit cannot see; give it a version='...' "
                "that changes whenever its answers do"
            )
        self.name = name
        self.module = module
        self.view: View = view if view is not None else Inputs()
        self.element = element
        self.classes = None if classes is None else _distinct(name, tuple(classes))
        self.version = version
        self.trained = trained or weights is not None or not isinstance(module, nn.Module)
        if weights is not None:
            load_weights(self, Path(weights))

    @property
    def network(self) -> nn.Module:
        """The module, where there is one. Raises RecipeError for a plain callable."""
        if not isinstance(self.module, nn.Module):
            raise RecipeError(f"net {self.name!r} is a plain callable: it can teach, but not be trained or tapped")
        return self.module

    @property
    def parameters(self) -> int:
        """How many numbers its parameters hold, frozen ones too; 0 for a plain callable."""
        module = self.module
        return sum(p.numel() for p in module.parameters()) if isinstance(module, nn.Module) else 0

    def __call__(self, batch: Batch) -> Tensor:
        """Return the outputs, (batch, classes)."""
        return self.through(self.module, batch)

    def through(self, module: Callable[..., Any], batch: Batch) -> Tensor:
        """Return what another module of the same form would say in its place, such as an average of its weights."""
        args, kwargs = self.view(batch)
        said = module(*args, **kwargs)
        if self.element is None and isinstance(said, Tensor):
            return said
        return picked(said, self.element, f"net {self.name!r}")

    def __repr__(self) -> str:
        return f"Net({self.name!r}, {type(self.module).__name__})"


def load_weights(net: "Net[Any]", path: Path) -> None:
    """Load a file of weights into a net, whole or not at all. Raises RecipeError where it does not fit."""
    state = _read_state(net.name, path)
    expected = net.network.state_dict()
    missing = sorted(expected.keys() - state.keys())
    unknown = sorted(state.keys() - expected.keys())
    misfits = [key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape]
    problems = []
    if missing:
        problems.append(f"lacks {_some(missing)}")
    if unknown:
        problems.append(f"has {_some(unknown)}, which the net does not ({did_you_mean(unknown[0], expected)})")
    for key in sorted(misfits)[:3]:
        problems.append(f"has {key!r} of shape {tuple(state[key].shape)}, not {tuple(expected[key].shape)}")
    if problems:
        raise RecipeError(f"the weights in {path} do not fit net {net.name!r}: the file {'; it '.join(problems)}")
    net.network.load_state_dict(dict(state))


def _read_state(name: str, path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise RecipeError(f"the weights of net {name!r} should be in {path}, but there is no such file")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # torch raises whatever a stranger's bytes lead it to: KeyError, IndexError, ...
        raise RecipeError(
            f"the weights of net {name!r} in {path} cannot be read: expected .safetensors or a torch file "
            f"holding nothing but a state dict ({(str(error) or 'it is empty').splitlines()[0]})"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise RecipeError(f"{path} holds no plain state dict (name -> tensor) for net {name!r}")
    return state


def _distinct(name: str, classes: tuple[str, ...]) -> tuple[str, ...]:
    repeated = sorted({each for each in classes if classes.count(each) > 1})
    if not classes:
        raise RecipeError(f"the classes of net {name!r} are names, at least one; got none")
    if repeated:
        raise RecipeError(f"the classes of net {name!r} are distinct names; got {repeated} more than once")
    return classes


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
