"""Find the layers that a loss has built, such as projectors, with their input and output shapes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.losses.features import as_tuple
from kdkit.utils.modules import forward_hook
from kdkit.utils.signatures import parameters_by_name


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectorSummary:
    """A trained module of a loss: its class, the shapes of its first input and output, and its parameters."""

    module: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    parameters: int


@contextmanager
def watch_projectors(loss: object) -> Iterator[dict[nn.Module, ProjectorSummary]]:
    """Collect the projectors that a loss calls within the context."""
    summaries: dict[nn.Module, ProjectorSummary] = {}

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        result = as_tuple(output)[0] if isinstance(output, tuple | Tensor) else None
        if args and isinstance(args[0], Tensor) and isinstance(result, Tensor):
            summaries[module] = ProjectorSummary(
                module=type(module).__name__,
                input=tuple(args[0].shape),
                output=tuple(result.shape),
                parameters=sum(map(torch.numel, module.parameters())),
            )

    with forward_hook(_projectors(loss) if isinstance(loss, nn.Module) else (), note):
        yield summaries


def _projectors(loss: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost trained modules of a loss that map one tensor. A module with two inputs is itself a loss."""
    for module in loss.children():
        if not any(parameter.requires_grad for parameter in module.parameters()):
            continue
        parameters = parameters_by_name(module.forward).values()
        required = [
            parameter
            for parameter in parameters
            if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        if isinstance(module, nn.ModuleList | nn.ModuleDict) or len(required) > 1:
            yield from _projectors(module)
        else:
            yield module
