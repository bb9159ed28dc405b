"""Compare layers of networks: the linear CKA of their features on a few batches."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
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
from kdkit.nets.net import Net
from kdkit.nets.open_taps import OpenTaps
from kdkit.nets.taps import Tap
from kdkit.nets.views import pick_tensor
from kdkit.recipe.objective import Match, as_objective
from kdkit.recipe.recipe import Stage, teachers_of
from kdkit.utils.modules import eval_mode, preserve_buffers, uncompiled

SAMPLES = 32  # of a batch
_BATCHES = 4
_LEAST_LAYERS = 6  # of a network, for which the modules inside of its blocks are compared too
_PROBED = 4  # samples of the pass that shows the shapes of features
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_ROUNDING = 100  # in units of the last place: how far apart equal features come out
_HSIC = CKA(unbiased=True)  # the biased one is near 1 for features that are longer than the batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer of a network. path: in the module. shape: of its output as a tap captures it, without the batch.

    depth: the share of the layers of the network that have run before it ends, in [0, 1].
    """

    path: str
    shape: tuple[int, ...]
    depth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKernels:
    """A layer with the kernel (batch, batch) of its features for every batch."""

    layer: Layer
    kernels: list[Tensor]


def matched_nets(stages: Sequence[Stage]) -> tuple[tuple[Net[Any], Net[Any]], ...]:
    """Return each student with each network that it matches."""
    return tuple(
        {
            (net, teacher): None  # as an ordered set: several terms may match one teacher
            for stage in stages
            for net, objective in stage.objectives.items()
            for weighted in as_objective(objective)
            if isinstance(weighted.term, Match)
            for teacher in teachers_of(weighted.term)
            if isinstance(teacher, Net) and isinstance(teacher.module, nn.Module)
        }
    )


def spread_batches(split: Split | LoaderSplit, size: int = SAMPLES) -> list[Batch]:
    """Return a few batches from all of a split, whose samples may be sorted by class; the first ones of a loader.

    Raises DataError if a loader yields none, as a stream that can be read once only.
    """
    if isinstance(split, LoaderSplit):
        data = [batch.rows(torch.arange(min(len(batch), size))) for batch in islice(_read(split, size), _BATCHES)]
        if not data:
            raise DataError("there is no batch if the data is read again")
        return data
    rows = torch.linspace(0, len(split) - 1, min(_BATCHES * size, len(split))).round().long()
    # Every n-th of them in a batch, so that each batch is from all of the split too.
    count = max(1, len(rows) // size)
    return [next(_read(split, size, rows[first::count])) for first in range(count)]


def layer_kernels(
    nets: Sequence[Net[Any]], data: Sequence[Batch], *, most: int, until: float = math.inf
) -> dict[Net[Any], list[LayerKernels]]:
    """Return the layers of networks, at most so many of each, with the kernels of their features.

    Networks run in eval mode, and stay as they were. until: a time of `time.perf_counter` after which no batch is
    begun; the first batch always is. All networks see the same batches. Layers that do not run in all of them are left
    out.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(preserve_buffers([net.network for net in nets]))
        stack.enter_context(uncompiled())  # hooks are not called in compiled code
        for net in nets:
            stack.enter_context(eval_mode(net.network))
        probe = data[0].rows(torch.arange(min(len(data[0]), _PROBED)))
        measured = {net: [LayerKernels(layer=layer, kernels=[]) for layer in _layers(net, probe, most)] for net in nets}
        for number, batch in enumerate(data):
            if number and time.perf_counter() > until:
                break
            measured = {net: _add_kernels(net, batch, layers) for net, layers in measured.items()}
    return measured


def similarities(students: Sequence[LayerKernels], teachers: Sequence[LayerKernels]) -> list[list[float]]:
    """Return the CKA of each layer of a student with each layer of a teacher; NaN if it is undefined.

    The sums over batches are those of the CKA of minibatches (Nguyen et al. 2021, sec. 3). It is about in [0, 1].
    """
    norms = [
        [_sum_of_hsic(layer.kernels, layer.kernels) for layer in layers]  # of a layer with itself
        for layers in (students, teachers)
    ]
    return [
        [
            # An estimate that is not above 0 has no square root.
            _sum_of_hsic(student.kernels, teacher.kernels) / (first * second) ** 0.5
            if first > 0 and second > 0
            else math.nan
            for teacher, second in zip(teachers, norms[1], strict=True)
        ]
        for student, first in zip(students, norms[0], strict=True)
    ]


def _read(split: Split | LoaderSplit, size: int, rows: Tensor | None = None) -> Iterator[Batch]:
    size = size if rows is None else len(rows)
    return iter(ReadBatches(batches(split, size, order=rows)))


def _layers(net: Net[Any], batch: Batch, most: int) -> list[Layer]:
    """Return the layers of a network that are compared, with the shapes of their features."""
    depths = _depths(net, batch, most)
    taps = [Tap(net.network.get_submodule(path)) for path in depths]
    with OpenTaps(taps, [net]) as open_taps:
        _, features = open_taps.run(net, batch)
    return [
        Layer(path=path, shape=tuple(feature.shape[1:]), depth=depths[path])
        for path, tap, feature in zip(depths, taps, features, strict=True)
        if not tap.form.notice  # about its channels, without which the shape means nothing
    ]


def _add_kernels(net: Net[Any], batch: Batch, layers: Sequence[LayerKernels]) -> list[LayerKernels]:
    """Run a network on a batch, append the kernel of each layer, and return the layers that ran.

    Kernels are computed while the network runs, so that no more than one feature is kept: those of all layers may take
    more memory than a training step.
    """
    kernels: dict[int, Tensor] = {}

    def hook(index: int) -> Any:
        def compute(_module: nn.Module, _args: Any, output: Any) -> None:
            kernels[index] = _kernel(pick_tensor(output, None, ""))  # of the last call, as a tap captures

        return compute

    handles = [
        net.network.get_submodule(item.layer.path).register_forward_hook(hook(index))
        for index, item in enumerate(layers)
    ]
    try:
        net(batch)
    finally:
        for handle in handles:
            handle.remove()
    for index, kernel in kernels.items():
        layers[index].kernels.append(kernel)
    return [item for index, item in enumerate(layers) if index in kernels]


def _kernel(feature: Tensor) -> Tensor:
    """Return the linear kernel (batch, batch) of a feature, without the similarity of a sample with itself."""
    # In any order of the channels and positions of a sample, the kernel is the same.
    features = feature.detach().flatten(1).float()
    samples = features - features.mean(0)
    limits = torch.finfo(torch.float32)
    largest = samples.abs().amax()
    # What the mean of equal features leaves is rounding, which the division would make a feature of its own.
    samples = samples.where(largest > _ROUNDING * limits.eps * features.abs().amax(), 0)
    samples = samples / largest.clamp(min=limits.tiny)  # squares must not overflow
    kernel = (samples @ samples.T).double().cpu()
    return kernel - kernel.diagonal().diag()


def _depths(net: Net[Any], batch: Batch, most: int) -> Mapping[str, float]:
    """Return the depth of the layers that are compared, by path in the order in which they run.

    These are the outermost trained modules inside the network, and those inside of them if there are only a few. Norms
    are left out, and modules that return the outputs of the network. Of more than `most`, every n-th one is taken.
    """
    paths = {module: path for path, module in net.network.named_modules() if path}
    finished: dict[str, int] = {}  # how many innermost modules have run when this one ends
    returned: dict[str, Tensor] = {}
    innermost = 0

    def note(module: nn.Module, _args: Any, output: Any) -> None:
        nonlocal innermost
        innermost += not any(module.children())
        try:
            tensor = pick_tensor(output, None, "")
        except KdkitError:  # it returns no tensor, or several
            return
        if tensor.ndim > 1 and len(tensor) == len(batch) and tensor.is_floating_point() and not tensor.is_nested:
            finished[paths[module]] = innermost
            returned[paths[module]] = tensor

    hooks = [module.register_forward_hook(note) for module in paths]
    try:
        output = net(batch)
    finally:
        for hook in hooks:
            hook.remove()
    trained = {
        path: sum(path.startswith(f"{outer}.") for outer in finished)  # how many layers are around it
        for path in finished
        if any(True for _ in net.network.get_submodule(path).parameters())
        and not isinstance(net.network.get_submodule(path), _NORMS)
        and returned[path].data_ptr() != output.data_ptr()
    }
    chosen: list[str] = []
    for level in range(max(trained.values(), default=0) + 1):
        # From the outside in, since a block and its last layer may return the same tensor.
        tensors = {returned[path].data_ptr() for path in chosen}
        inner = {path for path, around in trained.items() if around == level}
        chosen += [path for path in inner if returned[path].data_ptr() not in tensors]
        if len(chosen) >= _LEAST_LAYERS:
            break
    chosen = [path for path in finished if path in chosen]  # in the order in which they end
    if len(chosen) > most:  # from the first to the last, so that a deep network is compared in all of its depth
        chosen = [chosen[round(index * (len(chosen) - 1) / (most - 1))] for index in range(most)]
    return {path: finished[path] / innermost for path in chosen}


def _sum_of_hsic(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    return float(sum(_HSIC.hsic(left, right) for left, right in zip(first, second, strict=True)))
