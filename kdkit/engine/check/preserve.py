"""Run the module of a stage without a trace."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.engine.stage.module import DistillationModule
from kdkit.utils.modules import preserve_buffers


@contextmanager
def preserve(module: DistillationModule, buffers_of: Iterable[nn.Module]) -> Iterator[None]:
    """Run in training mode, and restore modes, gradients, random states, and the buffers of these modules."""
    modes = {part: part.training for part in module.modules()}
    gradients: list[tuple[Any, Tensor | None]] = [(parameter, parameter.grad) for parameter in module.parameters()]
    devices = [module.progress.device] if module.progress.is_cuda else []
    with torch.random.fork_rng(devices=devices), preserve_buffers(buffers_of):
        module.train()
        for parameter, _ in gradients:
            parameter.grad = None
        try:
            yield
        finally:
            module.open_taps.clear()  # features hold the graph of the forward pass
            for parameter, gradient in gradients:
                parameter.grad = gradient
            for part, training in modes.items():
                part.training = training
