"""The moving average of the weights and buffers of a network in training."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.errors import RecipeError
from kdkit.utils.modules import pruning_masks
from kdkit.utils.validation import is_number

_HALF_PRECISION = (torch.float16, torch.bfloat16)


class MovingAverage:
    """The exponential moving average of a module's parameters and buffers, in a copy of the module.

    Buffers that the first forward pass assigns, such as caches of positions, are left out. Integers, such as counters
    and index tables, the masks of pruned weights, and the infinite values of other masks are copied, not averaged. For
    trained tensors in half precision, the average is kept in float32, because rounding would lose most updates by
    1 - decay.
    module: the copy, which is changed. decay: the weight of the old average in each update. ramp: whether it is at most
    1 - 1 / (updates + 1) in the first updates; otherwise the first update copies the parameters and buffers.
    """

    def __init__(self, module: nn.Module, decay: float, *, ramp: bool) -> None:
        self.module, self.decay, self.ramp = module, decay, ramp
        self.updates = 0
        self._precise: dict[str, Tensor] = {}
        tensors = _tensors(module)
        self._names = [*tensors]
        # Found once: a search for infinite values in each update would make the CPU wait for the GPU.
        self._masks = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
        self._pruning = pruning_masks(tensors)

    @torch.no_grad()
    def update(self, source: nn.Module) -> None:
        """Move the average towards the parameters and buffers of a module."""
        self.updates += 1
        first = 1 - 1 / (self.updates + 1) if self.ramp else float(self.updates > 1)
        decay = min(self.decay, first)
        by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        current, new = _tensors(self.module), _tensors(source)
        for name in self._names:
            average, value = current[name], new[name]
            is_frozen = isinstance(value, nn.Parameter) and not value.requires_grad
            if average.dtype in _HALF_PRECISION and not is_frozen:
                if name not in self._precise:
                    self._precise[name] = average.detach().float()
                average = self._precise[name]
            value = value.detach().to(average.dtype)
            if average.shape != value.shape:
                _resize(average, value)
            if name in self._pruning:
                average.copy_(value)
                continue
            if name in self._masks:
                are_finite = average.isfinite() & value.isfinite()
                average.copy_(torch.where(are_finite, average.lerp(value, 1 - decay), value))
                continue
            averages, values = by_dtype[average.dtype]
            averages.append(average.detach())
            values.append(value)
        for dtype, (averages, values) in by_dtype.items():
            if decay and (dtype.is_floating_point or dtype.is_complex):
                torch._foreach_lerp_(averages, values, 1 - decay)
            else:
                torch._foreach_copy_(averages, values)
        for name, precise in self._precise.items():
            current[name].copy_(precise)

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply a change of the module, such as to another device or dtype."""
        self._precise = {name: change(precise).float() for name, precise in self._precise.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the average by name, and the number of updates."""
        tensors = _tensors(self.module)
        average = {name: tensors[name].detach() for name in self._names}
        return {"average": average | self._precise, "updates": self.updates}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state."""
        tensors = _tensors(self.module)
        for name in self._names:
            average, saved = tensors[name], state["average"][name]
            if average.shape != saved.shape:
                _resize(average, saved)
            average.copy_(saved)  # rounds to the dtype of the module
            if saved.dtype == torch.float32 and average.dtype in _HALF_PRECISION:
                self._precise[name] = saved.to(average.device, copy=True)
        self.updates = state["updates"]


def validate_decay(decay: object) -> None:
    """Raise RecipeError unless the decay of an average is at least 0 and below 1."""
    if not is_number(decay) or not 0 <= decay < 1:
        raise RecipeError(f"the decay of an average must be at least 0 and below 1; got {decay!r}")


def _resize(average: Tensor, value: Tensor) -> None:
    """Give the average the shape and values of a buffer that was resized, as observers of torch.ao resize theirs."""
    average.resize_(value.shape).copy_(value)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module by name. Tied ones are listed once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
