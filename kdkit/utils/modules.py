"""Run a network for a while, and leave its modes and its buffers as they were."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(module: object) -> Iterator[None]:
    """Put a module in eval mode; give each of its parts its own mode back at the end, also after an error.

    What is not an `nn.Module`, such as a teacher behind an API, has no mode and is left alone.
    """
    if not isinstance(module, nn.Module):
        yield
        return
    modes = {each: each.training for each in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for each, training in modes.items():
            each.training = training


@contextmanager
def preserve_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Leave every buffer as it was, also one that a module fills in place or assigns anew as it runs."""
    kept = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for each in modules
        for module in each.modules()
        for name, buffer in module._buffers.items()
    ]
    try:
        yield
    finally:
        for module, name, buffer, before in kept:
            module._buffers[name] = buffer
            if buffer is not None and before is not None:
                with torch.no_grad():
                    buffer.copy_(before)
