"""Compare the layers of networks by the linear CKA of their features on a few batches."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from kdkit.data.batch import Batch
from kdkit.data.dataset import LoaderSplit, Split
from kdkit.data.loading import batches
from kdkit.data.reading import ReadBatches
from kdkit.errors import DataError, KdkitError
from kdkit.losses.similarity import CKA
from kdkit.nets.elements import pick_tensor
from kdkit.nets.net import Net
from kdkit.nets.taps import OpenTaps, Tap
from kdkit.recipe.recipe import Stage, teachers_of, weighted_terms
from kdkit.utils.modules import eval_mode, forward_hook, preserve_buffers, uncompiled

SAMPLES = 32  # per batch
_BATCHES = 4
_LEAST_LAYERS = 6  # if a network has fewer layers, the modules inside them are compared too
_PROBED = 4  # samples in the forward pass that shows the shapes of features
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_ROUNDING = 100  # rounding errors of equal features, in multiples of the machine epsilon
_HSIC = CKA(unbiased=True)  # the biased estimate is near 1 if features have more elements than the batch has samples


@dataclass(slots=True, kw_only=True, eq=False)
class Layer:
    """A layer of a network. path: in the module. shape: of its output as a tap captures it, without the batch.

    depth: the fraction of the network's layers that have run when this one ends, in [0, 1]. kernels: of its features,
    (batch, batch) for every batch.
    """

    path: str
    shape: tuple[int, ...]
    depth: float
    kernels: list[Tensor] = field(default_factory=list, repr=False)


def matched_nets(stages: Sequence[Stage]) -> tuple[tuple[Net[Any], Net[Any]], ...]:
    """Return each student with each network that it matches."""
    return tuple(
        {
            (net, teacher): None  # a dict as an ordered set: several terms may match one teacher
            for stage in stages
            for net, weighted in weighted_terms(stage)
            for teacher in teachers_of(weighted.term)
            if isinstance(teacher, Net) and isinstance(teacher.module, nn.Module)
        }
    )


def spread_batches(split: Split | LoaderSplit, size: int = SAMPLES) -> list[Batch]:
    """Return some batches from across a split, whose samples may be sorted by class, or the first ones of a loader.

    Raises DataError if a loader yields none, such as a stream that can only be read once.
    """
    if isinstance(split, LoaderSplit):
        first = ReadBatches(batches(split, size)).take(_BATCHES)
        data = [batch.rows(torch.arange(min(len(batch), size))) for batch in first]
        if not data:
            raise DataError("there is no batch if the data is read again")
        return data
    rows = torch.linspace(0, len(split) - 1, min(_BATCHES * size, len(split))).round().long()
    # A batch takes every n-th row, so that each batch spans the whole split.
    count = max(1, len(rows) // size)
    orders = [rows[first::count] for first in range(count)]
    return [ReadBatches(batches(split, len(order), order=order)).take(1)[0] for order in orders]


def compared_layers(
    nets: Sequence[Net[Any]], data: Sequence[Batch], *, most: int, until: float = math.inf
) -> dict[Net[Any], list[Layer]]:
    """Return the layers of networks with the kernels of their features.

    Networks run in eval mode on the same batches, and are unchanged afterwards. Layers that do not run in every batch
    are left out. most: the maximum number of layers per network. until: a time of `time.perf_counter` after which no
    further batch is started; the first one always is.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(preserve_buffers([net.network for net in nets]))
        stack.enter_context(uncompiled())  # compiled code does not call hooks
        for net in nets:
            stack.enter_context(eval_mode(net.network))
        probe = data[0].rows(torch.arange(min(len(data[0]), _PROBED)))
        measured = {net: _layers(net, probe, most) for net in nets}
        for number, batch in enumerate(data):
            if number and time.perf_counter() > until:
                break
            measured = {net: _add_kernels(net, batch, layers) for net, layers in measured.items()}
    return measured


def similarities(students: Sequence[Layer], teachers: Sequence[Layer]) -> list[list[float]]:
    """Return the CKA of each student layer with each teacher layer, approximately in [0, 1]; NaN if undefined.

    Batches are summed as in minibatch CKA (Nguyen et al. 2021, sec. 3).
    """
    squares = {layer: _sum_of_hsic(layer, layer) for layer in (*students, *teachers)}

    def similarity(student: Layer, teacher: Layer) -> float:
        # The estimate may be 0 or negative, and then has no square root to divide by.
        if squares[student] <= 0 or squares[teacher] <= 0:
            return math.nan
        return _sum_of_hsic(student, teacher) / math.sqrt(squares[student] * squares[teacher])

    return [[similarity(student, teacher) for teacher in teachers] for student in students]


def _layers(net: Net[Any], batch: Batch, most: int) -> list[Layer]:
    """Return the layers of a network that are compared, with the shapes of their features."""
    depths = _depths(net, batch, most)
    taps = [Tap(net.network.get_submodule(path)) for path in depths]
    with OpenTaps(taps, [net]) as open_taps:
        _, features = open_taps.run(net, batch)
    return [
        Layer(path=path, shape=tuple(feature.shape[1:]), depth=depths[path])
        for path, tap, feature in zip(depths, taps, features, strict=True)
        if not tap.form.notice  # if the channels are uncertain, the shape means nothing
    ]


def _add_kernels(net: Net[Any], batch: Batch, layers: Sequence[Layer]) -> list[Layer]:
    """Run a network on a batch, append the kernel of each layer, and return the layers that ran.

    Kernels are computed while the network runs, so that only one feature is in memory at a time: the features of all
    layers may take more memory than a training step.
    """
    modules = {net.network.get_submodule(layer.path): layer for layer in layers}
    kernels: dict[nn.Module, Tensor] = {}

    def compute(module: nn.Module, _args: Any, output: Any) -> None:
        kernels[module] = _kernel(pick_tensor(output, None, ""))  # the last call counts, as for a tap

    with forward_hook(modules, compute):
        net(batch)
    for module, kernel in kernels.items():
        modules[module].kernels.append(kernel)
    return [layer for module, layer in modules.items() if module in kernels]


def _kernel(feature: Tensor) -> Tensor:
    """Return the linear kernel of a feature, (batch, ...) -> (batch, batch), with zeros on the diagonal."""
    # The kernel does not depend on the order of channels and positions.
    features = feature.detach().flatten(1).float()
    samples = features - features.mean(0)
    limits = torch.finfo(torch.float32)
    largest = samples.abs().amax()
    # If all features are equal, only rounding errors are left here, and the division would amplify them.
    samples = samples.where(largest > _ROUNDING * limits.eps * features.abs().amax(), 0)
    samples = samples / largest.clamp(min=limits.tiny)  # squares must not overflow
    kernel = (samples @ samples.T).cpu().double()  # in this order, because MPS has no float64
    return kernel - kernel.diagonal().diag()


def _depths(net: Net[Any], batch: Batch, most: int) -> Mapping[str, float]:
    """Return the depths of the layers to compare, by path in the order in which they run.

    These are the outermost modules with parameters, and also the modules inside them if there are only a few. Norms and
    modules that return the outputs of the network are left out. If there are more than `most`, every n-th is taken.
    """
    paths = {module: path for path, module in net.network.named_modules() if path}
    finished: dict[str, int] = {}  # the number of innermost modules that have run when this one ends
    returned: dict[str, Tensor] = {}
    innermost = 0

    def note(module: nn.Module, _args: Any, output: Any) -> None:
        nonlocal innermost
        innermost += not any(module.children())
        try:
            tensor = pick_tensor(output, None, "")
        except KdkitError:  # it does not return a single tensor
            return
        if tensor.ndim > 1 and len(tensor) == len(batch) and tensor.is_floating_point() and not tensor.is_nested:
            finished[paths[module]] = innermost
            returned[paths[module]] = tensor

    with forward_hook(paths, note):
        output = net(batch)
    trained = {
        path: sum(path.startswith(f"{outer}.") for outer in finished)  # the number of layers around it
        for path in finished
        if any(True for _ in net.network.get_submodule(path).parameters())
        and not isinstance(net.network.get_submodule(path), _NORMS)
        and returned[path].data_ptr() != output.data_ptr()
    }
    chosen: list[str] = []
    for level in range(max(trained.values(), default=0) + 1):
        # From the outside in, because a block and its last layer may return the same tensor.
        tensors = {returned[path].data_ptr() for path in chosen}
        inner = {path for path, around in trained.items() if around == level}
        chosen += [path for path in inner if returned[path].data_ptr() not in tensors]
        if len(chosen) >= _LEAST_LAYERS:
            break
    chosen = [path for path in finished if path in chosen]  # in the order in which they end
    if len(chosen) > most:  # evenly spaced from the first to the last, so that the whole depth is covered
        chosen = [chosen[round(index * (len(chosen) - 1) / (most - 1))] for index in range(most)]
    return {path: finished[path] / innermost for path in chosen}


def _sum_of_hsic(first: Layer, second: Layer) -> float:
    return float(sum(_HSIC.hsic(left, right) for left, right in zip(first.kernels, second.kernels, strict=True)))
