"""A trained network for exporters: a module of named tensors, with real inputs for examples and calibration."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from functools import cached_property
from io import StringIO
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kdkit.data.batch import Batch
from kdkit.data.dataset import Data, LoaderSplit, Split
from kdkit.data.loading import batches
from kdkit.errors import KdkitError, first_line
from kdkit.export.options import ExportOptions
from kdkit.metrics.base import Metric, NetworkReducing
from kdkit.metrics.bootstrap import without_interval
from kdkit.nets.elements import pick_tensor
from kdkit.nets.net import Net
from kdkit.recipe.recipe import Recipe
from kdkit.utils.modules import eval_mode
from kdkit.utils.randomness import preserve_rng_state
from kdkit.utils.reprs import describe_names
from kdkit.utils.seeds import derive_seed
from kdkit.utils.signatures import parameters_by_name

Sizes = tuple[int | str, ...]

_CALIBRATION_BATCH = 16
_BATCH_SIZES = (3, 5, 7, 11)  # candidates for the example, to find a size that no other dimension has
_PRECISIONS = {torch.float32: "fp32", torch.float64: "fp64", torch.float16: "fp16", torch.bfloat16: "bf16"}
_SPATIAL = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}


class ExportSource:
    """A network with weights, which is moved to the CPU, its recipe, and its inputs.

    input_names: names of the tensors that the view of the network selects from a batch, in the order of the arguments
    of `forward`. module: takes these tensors, and returns the outputs, (batch, classes, *positions).
    Raises KdkitError if an input is not a tensor or a plain value.
    """

    def __init__(self, recipe: Recipe, net: Net[Any], options: ExportOptions) -> None:
        self.recipe = recipe
        self.net = net
        self.options = options
        self.fixed_sizes = False
        self.shared: dict[str, Any] = {}  # values that several exporters compute from the program, by name
        net.device = None  # even if a run keeps the net on another device
        net.move_to(torch.device("cpu"))
        example = next(self.batches(self.data.validation, 1, count=1))
        with eval_mode(net.network), torch.no_grad():
            net.first_pass(example)  # detects which element the outputs are, and whether their classes are last
        args, kwargs = net.view(example)
        template = _named(net.network, args, kwargs)
        self.input_names = tuple(name for name, value in template.items() if isinstance(value, Tensor))
        for name, value in template.items():
            if not isinstance(value, Tensor | bool | int | float | str | None):
                raise KdkitError(
                    f"input {name!r} of net {net.name!r} is a {type(value).__name__}; an export takes only tensors: "
                    "select them with a view of the net"
                )
            if isinstance(value, Tensor) and value.dtype == torch.bfloat16:
                raise KdkitError(
                    f"input {name!r} of net {net.name!r} is bfloat16, which numpy and most runtimes lack; pass float32 "
                    "data, and convert it in the net"
                )
        if not self.input_names:
            raise KdkitError(f"net {net.name!r} has no tensor as input, but an export needs one")
        positional = list(template)[: len(args)]
        self.module: nn.Module = _TensorsOnly(net, template, positional)

    @property
    def data(self) -> Data:
        """The data of the recipe."""
        return self.recipe.data

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics of the recipe, without intervals, that a file can have: those of the outputs."""
        metrics = map(without_interval, self.recipe.metrics)
        return tuple(metric for metric in metrics if not isinstance(metric, NetworkReducing))

    @property
    def precision(self) -> str:
        """The precision of the weights, and of a file that does not round them."""
        dtypes = {tensor.dtype for tensor in self.net.network.parameters() if tensor.is_floating_point()}
        return "+".join(sorted(_PRECISIONS.get(dtype, str(dtype)) for dtype in dtypes)) or "fp32"

    @property
    def quantized(self) -> str:
        """The type of quantized weights, such as those of torchao; "" if there are none."""
        parameters = self.net.network.parameters()
        types = {type(tensor) for tensor in parameters if is_traceable_wrapper_subclass(tensor)}
        return ", ".join(sorted(kind.__name__ for kind in types))

    @property
    def notices(self) -> tuple[str, ...]:
        """What a user must know about a file of this network in any format."""
        notices = []
        # FakeQuantizedLinear of torchao, FakeQuantize of torch, and others
        names = {type(part).__name__ for part in self.net.network.modules()}
        simulated = min((name for name in names if "FakeQuant" in name), default=None)
        if simulated is not None:
            notices.append(
                f"net {self.net.name!r} simulates quantization ({simulated}), which the file computes in floating "
                "point by extra operators; convert it with the library that prepared it, or export a network without "
                "it to int8"
            )
        if left_out := {metric.name for metric in self.recipe.metrics} - {metric.name for metric in self.metrics}:
            notices.append(
                f"the gate leaves out {describe_names(sorted(left_out))}, because metrics with reduce_network run the "
                "network itself"
            )
        if self.recipe.metrics and not self.metrics:
            notices.append("no metric is compared; add one of the outputs to the recipe, such as Accuracy()")
        if self.quantized:
            notices.append(
                f"net {self.net.name!r} has quantized weights ({self.quantized}): pt2 stores them as they are, other "
                "formats may store their values in float32"
            )
        return tuple(notices)

    @property
    def output_name(self) -> str:
        """The name of the outputs in files whose format names them: "outputs" if no input has that name."""
        name = "outputs"
        while name in self.input_names:
            name += "_"
        return name

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the outputs."""
        return tuple(self.data.classes) if self.net.classes is None else self.net.classes

    def inputs_of(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the inputs of the network for a batch, in the order of `input_names`."""
        args, kwargs = self.net.view(batch)
        return tuple(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))

    def batches(self, split: Split | LoaderSplit, size: int, *, count: int) -> Iterator[Batch]:
        """Yield batches of a split, at most `count` samples in total; rows are chosen evenly spread."""
        if isinstance(split, LoaderSplit):
            for batch in batches(split, size):
                batch = batch.rows(torch.arange(min(count, len(batch))))
                yield batch
                count -= len(batch)
                if not count:
                    break
            return
        # Evenly spread, because neighbours may belong to one class or patient.
        rows = torch.linspace(0, len(split) - 1, min(count, len(split))).round().long()
        yield from batches(split, size, order=rows)

    @cached_property
    def calibration(self) -> tuple[Batch, ...]:
        """Batches of training samples, read once. Their choice depends only on the seed."""
        split, count = self.data.train, self.options.calibration
        if isinstance(split, LoaderSplit):
            return tuple(self.batches(split, _CALIBRATION_BATCH, count=count))
        generator = torch.Generator().manual_seed(derive_seed(self.options.seed, len(split)))
        rows = torch.randperm(len(split), generator=generator)[:count].sort().values
        return tuple(batches(split, _CALIBRATION_BATCH, order=rows))

    @cached_property
    def example(self) -> tuple[Tensor, ...]:
        """Inputs of a few validation samples. Their number differs from the sizes of all other dimensions."""
        batch = next(self.batches(self.data.validation, max(_BATCH_SIZES), count=max(_BATCH_SIZES)))
        sizes = {size for tensor in self.inputs_of(batch) for size in tensor.shape[1:]}
        count = next((size for size in _BATCH_SIZES if size not in sizes), _BATCH_SIZES[0])
        # Copies, because torch.onnx cannot convert a program that was traced on slices of other tensors.
        return tuple(tensor.clone() for tensor in self.inputs_of(batch.rows(torch.arange(count) % len(batch))))

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The network as a program of torch.export, with dynamic dimensions as far as the network allows.

        Raises KdkitError if torch cannot trace the network, or if it takes only one batch size.
        """
        # AUTO lets torch find out which sizes the operations fix, such as the channels of a convolution.
        program = self._traced(strict=False)
        if self._fixed_batch(program) is not None:
            # In a non-strict trace, `len(x)` is a plain number. A strict trace has more limits, but keeps it dynamic.
            with suppress(KdkitError):
                program = self._traced(strict=True)
        if (fixed := self._fixed_batch(program)) is not None:
            raise KdkitError(
                f"net {self.net.name!r} takes batches of exactly {fixed[1]} samples for {fixed[0]!r}, as torch traces "
                "it; in its forward, use x.shape[0] instead of len(x) as the batch size, and do not branch on it"
            )
        return program

    def _traced(self, *, strict: bool) -> torch.export.ExportedProgram:
        """Return the network as a program with the dynamic sizes that torch finds."""
        auto, fixed = torch.export.Dim.AUTO, torch.export.Dim.STATIC
        dynamic = tuple(
            {dim: auto if dim == 0 or not self.fixed_sizes else fixed for dim in range(tensor.ndim)}
            for tensor in self.example
        )
        with (
            eval_mode(self.module),
            preserve_rng_state(),
            torch.no_grad(),
            warnings.catch_warnings(),
            redirect_stderr(StringIO()),  # torch prints the graph so far there if it fails
        ):
            warnings.simplefilter("ignore")  # of torch about its own code
            try:
                return torch.export.export(self.module, self.example, dynamic_shapes=(dynamic,), strict=strict)
            except Exception as error:  # torch.export raises errors of many kinds
                raise KdkitError(
                    f"torch.export cannot trace net {self.net.name!r}: {type(error).__name__}: {first_line(error)}; "
                    "its forward may depend on the values of tensors or call torch.autograd.grad, or it may be "
                    "compiled or quantized already"
                ) from error

    def _fixed_batch(self, program: torch.export.ExportedProgram) -> tuple[str, int] | None:
        """Return the first input with a fixed batch size in a program, and that size; None if there is none."""
        for name, sizes in zip(self.input_names, _sizes(program, len(self.example)), strict=True):
            if sizes and isinstance(sizes[0], int):
                return name, sizes[0]
        return None

    def fix_sizes(self) -> None:
        """Make only the batch size dynamic, because the network behaves differently for other sizes."""
        self.fixed_sizes = True
        self.shared.clear()
        for name in ("program", "shapes"):
            vars(self).pop(name, None)

    @cached_property
    def shapes(self) -> dict[str, Sizes]:
        """The shape of each input: numbers, and names of dynamic dimensions. The first one is "batch"."""
        symbols: dict[str, str] = {}
        raw = _sizes(self.program, len(self.example))
        for sizes in raw:
            spatial = _SPATIAL.get(len(sizes) - 2, ())
            for dim, size in enumerate(sizes):
                if dim == 0 and isinstance(size, str):
                    symbols[size] = "batch"  # for all inputs, even if no operation makes torch require equal sizes
                elif isinstance(size, str) and size not in symbols:
                    named = spatial[dim - 2] if dim >= 2 and spatial else "length"
                    taken = {*symbols.values()}
                    symbols[size] = named if named not in taken else f"{named}_{len(taken)}"
        return {
            name: tuple(symbols[size] if isinstance(size, str) else size for size in sizes)
            for name, sizes in zip(self.input_names, raw, strict=True)
        }

    def size_advice(self, arrays: Mapping[str, NDArray[Any]]) -> str:
        """Return the inputs whose sizes a file does not take, and what to do; "" if it takes the sizes of all."""
        for name, shape in self.shapes.items():
            sizes = zip(shape, arrays[name].shape, strict=False)  # samples may lack a dimension
            if any(isinstance(size, int) and size != actual for size, actual in sizes):
                return (
                    f"; the file takes {name} of shape ({', '.join(map(str, shape))}) only, as those of LSTM, GRU and "
                    "RNN layers do: pad all samples to one size"
                )
        return ""

    def random_inputs(self, *, like: Sequence[Tensor], multiple: int = 0) -> tuple[Tensor, ...]:
        """Return random inputs with the mean and deviation of real ones.

        Integers, and floats that are whole numbers, may be tokens or numbers of categories, of which only real ones are
        known to be valid. So they are sampled from the real ones at the same position, such as a column of a table.

        multiple: if it is above 0, all dynamic dimensions have other sizes than the real inputs, multiples of it.
        """
        generator = torch.Generator().manual_seed(self.options.seed)
        changed: dict[str, int] = {}
        tensors = []
        for tensor, shape in zip(like, self.shapes.values(), strict=True):
            sizes = []
            for size, declared in zip(tensor.shape, shape, strict=True):
                if multiple and isinstance(declared, str):
                    size = changed.setdefault(declared, _other_size(size, multiple))
                sizes.append(size)
            real = tensor
            for dim, size in enumerate(sizes[1:], start=1):  # a larger size repeats the positions
                real = real.index_select(dim, torch.arange(size) % tensor.shape[dim])
            sampled = real.gather(0, torch.randint(len(real), sizes, generator=generator))
            if tensor.is_floating_point():
                noise = torch.randn(sizes, generator=generator)
                finite = tensor[tensor.isfinite()]
                deviation = finite.std() if len(finite) > 1 else torch.ones(())
                is_whole = (real == real.round()).all(0)
                sampled = torch.where(is_whole, sampled, (noise * deviation + finite.mean()).to(tensor.dtype))
            tensors.append(sampled)
        return tuple(tensors)


def _other_size(size: int, multiple: int) -> int:
    """Return another size, a multiple: a smaller one if there is one, but not 1, which some networks treat differently.

    For multiple=1, sizes above 3 become odd.
    """
    if multiple == 1:
        return (3 * size // 4) | 1 if size > 3 else 3 if size == 2 else 2
    return 3 * size // 4 // multiple * multiple or (size // multiple + 1) * multiple


class _TensorsOnly(nn.Module):
    """Takes the tensors of a net by position, adds its other arguments, and returns the net's outputs."""

    def __init__(self, net: Net[Any], template: dict[str, Any], positional: list[str]) -> None:
        super().__init__()
        self.network = net.network
        self.constants = {name: value for name, value in template.items() if not isinstance(value, Tensor)}
        self.tensors = [name for name, value in template.items() if isinstance(value, Tensor)]
        self.positional = positional
        self.element = net.taken_element
        self.channels_last = bool(net.channels_last)  # decided by its first batch
        self.source = f"net {net.name!r}"

    def forward(self, *tensors: Tensor) -> Tensor:
        values = {**self.constants, **dict(zip(self.tensors, tensors, strict=True))}
        args = [values.pop(name) for name in self.positional]
        output = self.network(*args, **values)
        if self.element is not None or not isinstance(output, Tensor):
            output = pick_tensor(output, self.element, self.source)
        return output.movedim(-1, 1) if self.channels_last and output.ndim > 2 else output


def _named(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a module by the names of its parameters; `input`, `input_1`, ... if it has no names."""
    parameters = parameters_by_name(module.forward).values()
    named = [
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    names = [
        named[index] if index < len(named) else f"input_{index}" if index else "input" for index in range(len(args))
    ]
    return {**dict(zip(names, args, strict=True)), **kwargs}


def _sizes(program: torch.export.ExportedProgram, count: int) -> list[Sizes]:
    """Return the shapes of the first inputs of a program: numbers, and the symbols of dynamic dimensions."""
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    shapes = [placeholders[name].meta["val"].shape for name in program.graph_signature.user_inputs[:count]]
    # A symbol with only one possible value prints as that number.
    texts = [[str(size) for size in shape] for shape in shapes]
    return [tuple(int(text) if text.isdecimal() else text for text in shape) for shape in texts]
