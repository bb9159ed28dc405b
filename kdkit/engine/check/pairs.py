"""Advise which layers of a student and a teacher to pair: by similarity, depth and shape, on a few batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from kdkit.data.batch import Batch
from kdkit.data.dataset import Data, LoaderSplit
from kdkit.data.loading import batches
from kdkit.data.reading import ReadBatches
from kdkit.engine.open_stage import tiny_batch
from kdkit.errors import KdkitError
from kdkit.losses.similarity import CKA
from kdkit.nets.net import Net
from kdkit.nets.taps import OpenTaps, Tap
from kdkit.nets.views import pick_tensor
from kdkit.recipe.objective import Match, as_objective
from kdkit.recipe.recipe import Recipe, teachers_of
from kdkit.utils.devices import Precision, autocast
from kdkit.utils.modules import eval_mode, preserve_buffers
from kdkit.utils.randomness import preserve_rng_state

_BATCHES, _SAMPLES = 4, 32
_LEAST_LAYERS, _MOST_LAYERS = 6, 64  # that are compared of a network
_RESIZED = 0.9  # the factor for layers whose positions differ, since features lose by a resize
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
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
class LayerPair:
    """A layer of a student and one of a teacher. similarity: their linear CKA, about in [0, 1]."""

    student: Layer
    teacher: Layer
    similarity: float

    @property
    def score(self) -> float:
        """The similarity, less for layers at different depths, and for features that have to be resized."""
        distance = abs(self.student.depth - self.teacher.depth)
        same_positions = self.student.shape[1:] == self.teacher.shape[1:]
        return max(self.similarity, 0.0) * (1 - distance) * (1.0 if same_positions else _RESIZED)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairAdvice:
    """The best pairs of layers of a student and a teacher, from the input to the output."""

    student: Net[Any]
    teacher: Net[Any]
    pairs: tuple[LayerPair, ...]


def pair_advice(
    recipe: Recipe, device: torch.device, precision: Precision = "fp32", *, count: int = 5
) -> tuple[PairAdvice, ...]:
    """Return the best pairs for each student and each network that it matches, at most `count` each.

    Networks are used as they are, in eval mode, on up to 128 samples of the training split. Pairs do not cross, and
    have each layer once.
    """
    matched = {
        (net, teacher): None
        for stage in recipe.stages
        for net, objective in stage.objectives.items()
        for weighted in as_objective(objective)
        if isinstance(weighted.term, Match)
        for teacher in teachers_of(weighted.term)
        if isinstance(teacher, Net) and isinstance(teacher.module, nn.Module)
    }
    data = [batch.to(device) for batch in _spread_batches(recipe.data)] if matched else []
    nets = dict.fromkeys(net for pair in matched for net in pair)
    with preserve_rng_state(), torch.no_grad(), autocast(precision, device):
        measured = {net: _kernels(net, data, tiny_batch(recipe.data, 2).to(device)) for net in nets}
    return tuple(
        PairAdvice(student=student, teacher=teacher, pairs=_best(measured[student], measured[teacher], count))
        for student, teacher in matched
    )


def _spread_batches(data: Data) -> list[Batch]:
    """Return a few batches from all of the training split, whose samples may be sorted by class."""
    train = data.train
    if isinstance(train, LoaderSplit):
        return [batch.rows(torch.arange(min(len(batch), _SAMPLES))) for batch in islice(_read(data, None), _BATCHES)]
    rows = torch.linspace(0, len(train) - 1, min(_BATCHES * _SAMPLES, len(train))).round().long()
    # Every n-th of them in a batch, so that each batch is from all of the split too.
    count = max(1, len(rows) // _SAMPLES)
    return [next(_read(data, rows[first::count])) for first in range(count)]


def _read(data: Data, rows: Tensor | None) -> Iterator[Batch]:
    size = _SAMPLES if rows is None else len(rows)
    return iter(ReadBatches(batches(data.train, size, order=rows), data.train, None))


def _kernels(net: Net[Any], data: Sequence[Batch], tiny: Batch) -> list[tuple[Layer, list[Tensor]]]:
    """Return layers of a network, each with its kernel (batch, batch) of every batch."""
    with eval_mode(net.network), preserve_buffers([net.network]), torch.compiler.set_stance("force_eager"):
        depths = _depths(net, tiny)
        taps = [Tap(net.network.get_submodule(path)) for path in depths]
        kernels: list[list[Tensor]] = [[] for _ in taps]
        shapes: list[tuple[int, ...]] = [() for _ in taps]
        with OpenTaps(taps, [net]) as open_taps:
            for batch in data:
                open_taps.clear()
                net(batch)
                for index, feature in enumerate(open_taps.take()):
                    shapes[index] = tuple(feature.shape[1:])
                    kernels[index].append(_kernel(feature))
    return [
        (Layer(path=path, shape=shape, depth=depths[path]), kernels_of_layer)
        for path, tap, shape, kernels_of_layer in zip(depths, taps, shapes, kernels, strict=True)
        if not tap.form.doubt  # about its channels, without which the shape means nothing
    ]


def _kernel(feature: Tensor) -> Tensor:
    """Return the linear kernel (batch, batch) of a feature, without the similarity of a sample with itself."""
    samples = feature.detach().flatten(1).float()
    samples = samples - samples.mean(0)
    samples = samples / samples.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)  # squares must not overflow
    kernel = (samples @ samples.T).double().cpu()
    return kernel - kernel.diagonal().diag()


def _depths(net: Net[Any], batch: Batch) -> dict[str, float]:
    """Return the depth of the layers that are compared, by path in the order in which they run.

    These are the outermost trained modules inside the network, and those inside of them if there are only a few. Norms
    are left out, and modules that return the outputs of the network.
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
    return {path: finished[path] / innermost for path in chosen[:_MOST_LAYERS]}


def _best(
    students: Sequence[tuple[Layer, list[Tensor]]], teachers: Sequence[tuple[Layer, list[Tensor]]], count: int
) -> tuple[LayerPair, ...]:
    """Return the pairs with the highest scores that have each layer once and do not cross."""
    student_norms, teacher_norms = (
        [_sum_of_hsic(kernels, kernels) for _, kernels in layers] for layers in (students, teachers)
    )
    candidates = []
    for (student, student_kernels), student_norm in zip(students, student_norms, strict=True):
        for (teacher, teacher_kernels), teacher_norm in zip(teachers, teacher_norms, strict=True):
            if student_norm > 0 and teacher_norm > 0:  # an estimate that is not has no square root
                similarity = _sum_of_hsic(student_kernels, teacher_kernels) / (student_norm * teacher_norm) ** 0.5
                candidates.append(LayerPair(student=student, teacher=teacher, similarity=similarity))
    chosen: list[LayerPair] = []
    for pair in sorted(candidates, key=lambda pair: -pair.score):
        is_in_order = all(
            (pair.student.depth - other.student.depth) * (pair.teacher.depth - other.teacher.depth) > 0
            for other in chosen
        )
        if len(chosen) < count and pair.score > 0 and is_in_order:
            chosen.append(pair)
    return tuple(sorted(chosen, key=lambda pair: pair.student.depth))


def _sum_of_hsic(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Return the sum over batches, as in the CKA of minibatches (Nguyen et al. 2021, sec. 3)."""
    return float(sum(_HSIC.hsic(left, right) for left, right in zip(first, second, strict=True)))
