"""Run a command with an emulated CUDA device.

    pip install nvidia-cuda-crt
    python -m tools.emulated_cuda pytest -m gpu

torch finds one CUDA device, whose memory is that of the host and whose kernels are those of the CPU. What is real:
torch's allocator, its streams, events, random states and graphs, its errors for tensors on several devices,
`torch.cuda.set_sync_debug_mode`, and TORCH_CUDA_SANITIZER=1, which finds streams that do not wait for each other. A
graph runs what was captured, on the memory and with the numbers of the capture. What is missing: time, work that is
still under way on a stream, cuDNN, GRU and LSTM, torch.compile, NCCL, NVML, and the rounding of a GPU. So it finds
errors, and cannot show how fast a GPU is, or that it gives the same numbers.

It needs Linux, g++, torch for CUDA 13, and the headers of nvidia-cuda-crt. EMULATED_CUDA_DEVICES is the number of
devices, EMULATED_CUDA_BYTES the memory of all together, 8 GiB by default.
"""

import os
import subprocess
import sys
from pathlib import Path

import torch

HERE, TORCH = Path(__file__).parent, Path(torch.__file__).parent
BUILT = HERE / "build" / f"torch-{torch.__version__}"


def main() -> None:
    """Build the two libraries if they are older than their sources, and run the command of the arguments."""
    if len(sys.argv) < 2:
        sys.exit("name the command that gets an emulated CUDA device: python -m tools.emulated_cuda pytest -m gpu")
    runtime = _build("runtime.cpp", "libcuda.so.1", "-Wl,-soname,libcuda.so.1")
    includes = [f"-I{TORCH / 'include' / folder}" for folder in ("", "torch/csrc/api/include")]
    libraries = [f"-l{name}" for name in ("torch_cpu", "c10", "c10_cuda", "torch_cuda")]
    _build("kernels.cpp", "libkernels.so", *includes, f"-L{TORCH / 'lib'}", *libraries, str(runtime))
    os.execvpe(sys.argv[1], sys.argv[1:], {**os.environ, "LD_PRELOAD": str(runtime)})


def _build(source: str, library: str, *options: str) -> Path:
    """Return the path of a library, which is built if it is older than its source."""
    path, target = HERE / source, BUILT / library
    if target.exists() and target.stat().st_mtime > path.stat().st_mtime:
        return target
    headers = sorted(folder for folder in TORCH.parent.glob("nvidia/*/include") if folder.is_dir())
    if not any((folder / "crt").is_dir() for folder in headers):
        sys.exit("the headers of CUDA are not complete: pip install nvidia-cuda-crt")
    BUILT.mkdir(parents=True, exist_ok=True)
    print(f"building {library}, which takes a minute", file=sys.stderr)
    flags = ["-std=c++20", "-O1", "-w", "-shared", "-fPIC", *(f"-I{folder}" for folder in headers)]
    subprocess.run(["g++", *flags, str(path), *options, "-o", str(target)], check=True)
    return target


if __name__ == "__main__":
    main()
