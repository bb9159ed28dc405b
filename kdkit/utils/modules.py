"""Run a network temporarily, and restore its modes and its buffers."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def eval_mode(module: object) -> Iterator[None]:
    """Put a module in eval mode, and restore the mode of every submodule at the end, also after an error.

    An object that is not an `nn.Module`, such as a teacher behind an API, has no mode and is left unchanged.
    """
    if not isinstance(module, nn.Module):
        yield
        return
    # module.train() would set one mode for all submodules; user code may keep some, such as batch norms, in eval mode.
    modes = {submodule: submodule.training for submodule in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for submodule, training in modes.items():
            submodule.training = training


@contextmanager
def preserve_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Restore every buffer at the end, both buffers that are filled in place and those that are replaced."""
    # `_buffers` rather than `named_buffers`, which skips buffers that are None and may be assigned meanwhile.
    saved = [
        (submodule, name, buffer, None if buffer is None else buffer.clone())
        for module in modules
        for submodule in module.modules()
        for name, buffer in submodule._buffers.items()
    ]
    try:
        yield
    finally:
        for submodule, name, buffer, values in saved:
            submodule._buffers[name] = buffer
            if buffer is not None and values is not None:
                with torch.no_grad():
                    buffer.copy_(values)


def copy_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a module's state dict on the CPU, which later training does not change."""
    return {key: value.detach().cpu().clone() for key, value in module.state_dict().items()}
