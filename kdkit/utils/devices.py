"""Choose a device and a precision."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

from kdkit.errors import RecipeError

Precision = Literal["fp32", "bf16", "fp16"]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context that forward passes run in, in this precision on this device."""
    if precision == "fp32":
        return nullcontext()
    return _Autocast(device.type, dtype=_AUTOCAST[precision])


class _Autocast(torch.autocast):
    """torch.autocast that frees its half-precision copies of the weights whenever it ends.

    torch frees them at the end of the outermost autocast alone. Inside an autocast of user code, each training step
    would run on the copies that the first step made, as if the optimizer had never changed a weight.
    """

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.clear_autocast_cache()


def find_device(name: str) -> torch.device:
    """Return a device by name. Raises RecipeError where it is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        reason = str(error).splitlines()[0]
        raise RecipeError(f"device {name!r} is not there (there are: {', '.join(there)}): {reason}") from error
    if device.type == "meta":
        raise RecipeError("nothing can be computed on device 'meta'; choose 'cpu' or an accelerator")
    return device
