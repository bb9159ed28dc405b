"""Measure the peak memory and the time of a step of a language model whose loss takes chunks of tokens.

    python benchmarks/chunked.py [--tokens 2048] [--words 32000] [--rows 1024 256 64] [--device cpu] [--rounds 5]

A student of width 256 learns from the labels and from a teacher of width 512, by reverse KL divergence, in a Distiller.
Both networks are an embedding, a linear layer and a head, so that nearly all memory and time are those of the
vocabulary: the ratios are the extremes, and those of models with many layers are nearer to 1. Plain and chunked steps
alternate in one process; printed are medians over rounds. The memory is measured in a last round, as the peak of the
process (VmHWM, reset before each step, with malloc keeping no freed memory) or of the allocator on a GPU, above what
was in use before the step. With --labelled 0.5, half of the tokens have a label.
"""

import argparse
import ctypes
import platform
import statistics
import time
from operator import truediv
from pathlib import Path

import torch
from torch import nn

from kdkit import Distiller, HeadTap, Match, Net, Truth
from kdkit.losses import Chunked, ReverseKL


def main():
    """Print the peak memory and the time of a step of each method, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=2048, help="of a batch")
    parser.add_argument("--words", type=int, default=32_000, help="of the vocabulary")
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 256, 64], help="of a chunk")
    parser.add_argument("--labelled", type=float, default=1.0, help="the share of tokens that have a label")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    large, small = (model(width, options.words).to(options.device) for width in (512, 256))
    tokens = torch.randint(0, options.words, (8, options.tokens // 8), device=options.device)
    labels = tokens.roll(-1, 1).masked_fill(torch.rand(tokens.shape, device=options.device) > options.labelled, -100)
    methods = (None, *options.rows)
    times = {rows: [] for rows in methods}
    for _ in range(options.rounds):
        for rows in methods:
            times[rows].append(step(large, small, tokens, labels, rows)[1])
    if tokens.device.type == "cpu":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 2**16)  # M_MMAP_THRESHOLD: larger blocks return to the system
        libc.malloc_trim(0)  # and so do those that are free already
    peaks = {rows: step(large, small, tokens, labels, rows)[0] for rows in methods}
    print(f"outputs of a network: {options.tokens * options.words * 4 / 2**20:,.0f} MiB")
    for rows in methods:
        seconds, ratio = statistics.median(times[rows]), statistics.median(map(truediv, times[rows], times[None]))
        name = "plain" if rows is None else f"chunks of {rows}"
        used = f"{peaks[rows] / 2**20:8,.0f} MiB  {peaks[rows] / peaks[None]:.3f}x"
        print(f"{name:16} peak {used}   step {seconds:7.3f} s  {ratio:.2f}x")


def model(width, words):
    """Return an embedding, a layer and a head: (batch, tokens) -> (batch, tokens, words)."""
    return nn.Sequential(nn.Embedding(words, width), nn.Linear(width, width), nn.Linear(width, words, bias=False))


def step(large, small, tokens, labels, rows):
    """Return the peak memory of a step above that before it, in bytes, and its time in seconds."""
    student, teacher = Net("student", small), Net("teacher", large, trained=True)
    truth, match = nn.CrossEntropyLoss(), ReverseKL()
    if rows is None:
        objective = 0.5 * Truth(truth) + 0.5 * Match(teacher, match)
    else:
        side, target = HeadTap(small[-1]), HeadTap(large[-1])
        objective = 0.5 * Truth(Chunked(truth, rows=rows), student=side)
        objective += 0.5 * Match(teacher, Chunked(match, rows=rows), student=side, target=target)
    with Distiller(student, objective, (tokens[:2, :4], labels[:2, :4]), ignore_index=-100) as distiller:
        # The gradients are there, as in all steps but the first.
        for parameter in small.parameters():
            parameter.grad = torch.zeros_like(parameter)
        before, start = reset_peak(tokens.device), time.perf_counter()
        distiller(tokens, labels).loss.backward()
        used = peak(tokens.device) - before  # on a GPU, waits for it
        return used, time.perf_counter() - start


def reset_peak(device):
    """Forget the peak, and return the bytes that are in use."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak(device):
    """Return the peak in bytes."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    return status("VmHWM")


def status(name):
    """Return a number of /proc/self/status, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
