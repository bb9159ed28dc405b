"""Choose a device and a precision, and time what a device computes."""

import os
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from kdkit.errors import RecipeError, first_line
from kdkit.utils.memory import is_out_of_memory

Precision = Literal["fp32", "bf16", "fp16"]

_JOINED = 2**16  # bytes; larger tensors are copied alone, because to join them takes memory and is not faster
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which forward passes of this precision run on the device."""
    if precision == "fp32":
        return nullcontext()
    return _Autocast(device.type, dtype=_AUTOCAST[precision])


class _Autocast(torch.autocast):
    """torch.autocast that frees its half-precision copies of the weights whenever it ends.

    torch frees them only at the end of the outermost autocast. Inside an autocast of user code, even a disabled one,
    each training step would use the copies from the first step, as if the optimizer had never changed a weight.
    """

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.clear_autocast_cache()


@contextmanager
def default_modes() -> Iterator[None]:
    """Use torch's default modes in this context: gradients on, autocast off, and new tensors on the CPU.

    Otherwise the modes of a caller would change results: in `torch.no_grad()` and `torch.inference_mode()` nothing is
    trained, and an autocast replaces the precision of a run.
    """
    with ExitStack() as modes:
        # Both turn gradients on, and restore the caller's mode even if user code within this context changes it.
        is_inference = torch.is_inference_mode_enabled()
        modes.enter_context(torch.inference_mode(mode=False) if is_inference else torch.enable_grad())
        for kind in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(kind):
                modes.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":  # otherwise each operation would be slower for nothing
            modes.enter_context(torch.device("cpu"))
        yield


@contextmanager
def deterministic(*, enabled: bool) -> Iterator[None]:
    """Use kernels that give the same bits in each run, and restore the settings at the end.

    Operations that have no such kernel raise RuntimeError.
    """
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark


def find_device(name: str) -> torch.device:
    """Return the device of this name; "auto" is the first of CUDA, MPS and CPU. Raises RecipeError if it is missing."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)  # torch.device accepts "cuda:7" on any machine; only an allocation tests it
    except (RuntimeError, AssertionError, NotImplementedError, ImportError, TypeError) as error:
        available = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        available += ["mps"] * torch.backends.mps.is_available()
        reason = first_line(error).split(". ")[0]  # torch adds every backend that it knows
        raise RecipeError(f"device {name!r} is not available (there are: {', '.join(available)}): {reason}") from error
    if device.type == "meta":
        raise RecipeError("nothing can be computed on device 'meta'; choose 'cpu' or an accelerator")
    return device


def elapsed(began: float, device: torch.device) -> float:
    """Return the seconds since a time of `time.perf_counter`, after waiting for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - began


def copy_to_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return copies of tensors on the CPU, without gradients.

    Small tensors of a GPU are joined first, because each copy waits for the GPU: there may be hundreds of them.
    """
    copies = {}
    joined: dict[Any, list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
        if plain and tensor.device.type not in ("cpu", "meta") and tensor.nbytes <= _JOINED:
            joined[tensor.device, tensor.dtype].append(index)
        else:
            copies[index] = tensor.detach().to("cpu", copy=True)
    for indices in joined.values():
        group = [tensors[index].detach() for index in indices]
        flat = torch.cat([tensor.flatten() for tensor in group]).cpu()
        parts = torch.split(flat, [tensor.numel() for tensor in group])
        for index, tensor, part in zip(indices, group, parts, strict=True):
            copies[index] = part.view(tensor.shape).clone()  # a view would keep all others in memory
    return [copies[index] for index in range(len(tensors))]


def widest_float(device: torch.device) -> torch.dtype:
    """Return float64, or float32 for MPS, on which no tensor can be float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def is_kernel_error(error: BaseException) -> bool:
    """Whether a kernel failed, other than for lack of memory, so that this process can no longer use its accelerator.

    The text is tested too, because a recipe check reports an error of user code as one of several problems.
    """
    failed = isinstance(error, torch.AcceleratorError) or re.search(r"\b(CUDA|HIP) error: ", str(error)) is not None
    return failed and not is_out_of_memory(error)


def uses_tf32() -> dict[str, bool]:
    """Return whether convolutions and matrix products in float32 use TF32 on CUDA, which has 10 bits of mantissa."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    # The older settings cannot be read if user code has set these.
    convolutions: Any = cudnn.conv  # type: ignore[attr-defined]  # left out of the stubs
    settings = {"convolutions": convolutions.fp32_precision, "matrix products": matmul.fp32_precision}
    default = torch.backends.fp32_precision  # type: ignore[attr-defined]  # also left out
    return {name: (default if value == "none" else value) == "tf32" for name, value in settings.items()}
