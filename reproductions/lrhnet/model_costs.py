"""The costs of a network: parameters, multiply-adds, latency for one record on a CPU, and file size."""

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

ROWS = {"SE-ResNet": "teacher", "1D-CNN": "cnn1d", "LRH-Net": "alone"}  # by kind of network
WARM_UP = 3  # calls that are not timed


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The costs of one network.

    published: the parameters of the authors' code. multiply_adds: of convolutions and linear layers, for one record,
    without biases. milliseconds: the median time for one record. file_bytes: of the fp32 weights as safetensors.
    """

    model: str
    leads: int
    parameters: int
    published: int | None
    multiply_adds: int
    milliseconds: float
    file_bytes: int
    threads: int


def model_costs(leads: Sequence[int], size: str, preset: Preset, repeats: int = 30) -> list[Cost]:
    """Return the costs of the three kinds of network, at the widths and the length of this size."""
    costs = []
    for model, count in ((model, count) for model in ROWS for count in leads):
        row: Any = ROWS[model]
        net = network(row, count, SIZES[size], preset).network.eval()
        inputs = torch.zeros(1, count, SIZES[size].length), torch.zeros(1, 5)
        costs.append(
            Cost(
                model=model,
                leads=count,
                parameters=sum(parameter.numel() for parameter in net.parameters()),
                published=PARAMETERS[model].get(count),
                multiply_adds=multiply_adds(net, inputs),
                milliseconds=1000 * latency(net, inputs, repeats),
                file_bytes=len(save(net.state_dict())),
                threads=torch.get_num_threads(),
            )
        )
    return costs


@torch.inference_mode()
def latency(net: nn.Module, inputs: tuple[Tensor, ...], repeats: int) -> float:
    """Return the median time of a call, in s."""
    seconds = []
    for _ in range(repeats + WARM_UP):
        start = time.perf_counter()
        net(*inputs)
        seconds.append(time.perf_counter() - start)
    return median(seconds[WARM_UP:])


@torch.inference_mode()
def multiply_adds(net: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Return the multiply-adds of all convolutions and linear layers in a call."""
    counts: list[int] = []

    def count(module: Any, _: Any, output: Tensor) -> None:
        # Each output needs one multiply-add per weight of its filter.
        counts.append(output.numel() * module.weight[0].numel())

    hooks = [layer.register_forward_hook(count) for layer in net.modules() if isinstance(layer, nn.Conv1d | nn.Linear)]
    try:
        net(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts)
