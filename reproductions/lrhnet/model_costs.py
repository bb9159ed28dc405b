"""What a net costs: parameters, multiply-adds, the time for one record on a CPU, and the size of its file."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from reproductions.lrhnet.paper_results import PARAMETERS
from reproductions.lrhnet.recipe import SIZES, Preset, network

KINDS = {"SE-ResNet": "teacher", "1D-CNN": "cnn1d", "LRH-Net": "alone"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The costs of one net.

    published: the parameters of the authors' code. multiply_adds: of convolutions and linear layers, for one record,
    biases left out. milliseconds: the median time for one record. file_bytes: of the fp32 weights as safetensors.
    """

    model: str
    leads: int
    parameters: int
    published: int | None
    multiply_adds: int
    milliseconds: float
    file_bytes: int
    threads: int


def costs(leads: Sequence[int], size: str, preset: Preset, repeats: int = 30) -> list[Cost]:
    """Return the costs of the three kinds of net, at the widths and the length of this size."""
    return [_cost(model, count, size, preset, repeats) for model in KINDS for count in leads]


def _cost(model: str, leads: int, size: str, preset: Preset, repeats: int) -> Cost:
    row: Any = KINDS[model]
    net = network(row, leads, SIZES[size], preset).network.eval()
    given = torch.zeros(1, leads, SIZES[size].length), torch.zeros(1, 5)
    return Cost(
        model=model,
        leads=leads,
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        published=PARAMETERS[model].get(leads),
        multiply_adds=multiply_adds(net, given),
        milliseconds=1000 * latency(net, given, repeats),
        file_bytes=len(save(net.state_dict())),
        threads=torch.get_num_threads(),
    )


@torch.inference_mode()
def latency(net: nn.Module, given: tuple[Tensor, ...], repeats: int) -> float:
    """Return the median time of a call, in s, after three that are not counted."""
    times = []
    for _ in range(repeats + 3):
        began = time.perf_counter()
        net(*given)
        times.append(time.perf_counter() - began)
    return median(times[3:])


@torch.inference_mode()
def multiply_adds(net: nn.Module, given: tuple[Tensor, ...]) -> int:
    """Return the multiply-adds of all convolutions and linear layers in a call."""
    counts: list[int] = []

    def count(module: Any, _: Any, output: Tensor) -> None:
        counts.append(output.numel() * module.weight[0].numel())

    hooks = [layer.register_forward_hook(count) for layer in net.modules() if isinstance(layer, nn.Conv1d | nn.Linear)]
    try:
        net(*given)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts)
