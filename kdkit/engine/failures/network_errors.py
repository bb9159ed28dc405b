"""Explain why a network fails for its inputs: their shapes, dtype, channels and size, and the line of user code."""

import inspect
import re
import traceback
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import kdkit
from kdkit.data.batch import Batch, has_objects, nested_tensors
from kdkit.data.samples import MISSING_LABEL
from kdkit.errors import DataError, KdkitError, first_line
from kdkit.nets.net import Net
from kdkit.nets.views import Images
from kdkit.teachers.base import Teacher
from kdkit.utils.signatures import parameters_by_name

_POSITIONS = {nn.Conv1d: ("length",), nn.Conv2d: ("height", "width"), nn.Conv3d: ("depth", "height", "width")}
_OF_ARRAYS = (torch.float64, torch.uint8, torch.int8, torch.int16, torch.uint16)
_BATCH_NORM = "Expected more than 1 value per channel when training"  # the start of torch's message
_LIBRARIES = (Path(torch.__file__).parent, Path(kdkit.__file__).parent)


def describe_failure(teacher: Teacher, batch: Batch, error: Exception) -> str:
    """Return why a network or a user-defined teacher fails for a batch. A KdkitError is returned unchanged."""
    if isinstance(error, KdkitError):
        return str(error)
    reason, device = f"{type(error).__name__}: {first_line(error)}", batch.labels.device
    if not isinstance(teacher, Net):
        return f"{teacher.name!r} fails for a batch: {reason}{line_of_user_code(error)}{device_advice(error, device)}"
    try:
        args, kwargs = teacher.view(batch)
    except Exception:  # a user-defined view may raise anything
        advice = device_advice(error, device) or "; a view gets a Batch, and the inputs of the data are batch.inputs"
        return (
            f"the view {teacher.view!r} of net {teacher.name!r} fails for a batch: {reason}{line_of_user_code(error)}"
            f"{advice}"
        )
    named = [*(("", value) for value in args), *((f"{name} ", value) for name, value in kwargs.items())]
    tensors = [value for _, value in named if isinstance(value, Tensor)]
    described = (name + _described(value) for name, value in named if has_objects(value) or [*nested_tensors(value)])
    inputs = ", ".join(described)
    advice = input_advice(teacher, tensors, [*kwargs], error) or device_advice(error, teacher.device or device)
    if isinstance(batch.inputs, (list, tuple)) and isinstance(error, TypeError) and "were given" in str(error):
        advice = "; the items of a list are its arguments: if it takes the list itself, yield it in a tuple, (inputs,)"
    if args and has_objects(args[0]) and isinstance(error, TypeError):
        advice = _object_advice(teacher, args[0], error)
    if (isinstance(error, TypeError) or not advice) and _has_label_as_input(batch):
        advice = "; if the second input is the label, leave out kdkit.Unlabelled(...): labels need not be used"
    if texts := sum(isinstance(value, str) for value in args):
        inputs = f"{texts} texts"
        advice = "; tokenize texts in the collate_fn of a DataLoader, or in a view: Net(..., view=...)"
    return f"net {teacher.name!r} fails for its inputs ({inputs}): {reason}{line_of_user_code(error)}{advice}"


def _has_label_as_input(batch: Batch) -> bool:
    """Whether a batch without labels has pairs of inputs and whole numbers, such as those of a labelled dataset."""
    inputs = batch.inputs
    if (
        not isinstance(inputs, (list, tuple))
        or len(inputs) != 2
        or not all(isinstance(item, Tensor) for item in inputs)
    ):
        return False
    is_number = inputs[1].shape == (len(batch),) and not inputs[1].is_floating_point()
    return is_number and inputs[0].is_floating_point() and bool((batch.labels == MISSING_LABEL).all())


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    count = sum(1 for _ in nested_tensors(value))
    return f"a {type(value).__name__}" + (f" of {count} tensors" if count else "")


def _object_advice(net: Net[Any], value: Any, error: TypeError) -> str:
    """Return advice if a network gets an object, such as a batch of graphs, instead of its attributes, or ""."""
    if not re.search(r"required positional argument|must be Tensor, not", str(error)):
        return ""
    names = [item.name for item in _arguments(net.module) if item.default is item.empty and hasattr(value, item.name)]
    taken = repr(tuple(names)) if names else "(...)"
    return f"; select the attributes that it takes: Net(..., view=Inputs(only={taken}))"


def input_advice(net: Net[Any], inputs: Iterable[Tensor], keys: Sequence[str], error: Exception) -> str:
    """Return advice on common mistakes with columns, arrays, images and decoders, to append to the error, or "".

    keys: of inputs that are a mapping.
    """
    is_call = isinstance(error, TypeError)
    takes_one = is_call and _takes_one(net.module)
    if (is_call and "unexpected keyword argument" in str(error)) or (takes_one and "required positional" in str(error)):
        arguments = [item.name for item in _arguments(net.module)]
        taken = tuple(key for key in keys if key in arguments) or (*keys[:1],)
        advice = f"; select the inputs that it takes, for example Net(..., view=Inputs(only={taken}))"
        whole = ", or give it the whole mapping: view=lambda batch: ((dict(batch.inputs),), {})"
        return advice + whole * takes_one
    # Models of transformers name the inputs of the encoder in this error.
    has_decoder = getattr(getattr(net.module, "config", None), "is_encoder_decoder", False)
    if has_decoder and "inputs_embeds" in str(error):
        return (
            "; its decoder needs decoder_input_ids among the inputs, the labels shifted to the right, which "
            "DataCollatorForSeq2Seq(tokenizer, model=model) of transformers adds, or its shift_tokens_right makes"
        )
    tensors = list(inputs)
    advice = _dtype_advice(net, tensors, error) or _channels_advice(net, tensors, error)
    return advice or _size_advice(tensors, error) or index_advice(error, tensors) or _gradient_advice(error)


def index_advice(error: Exception, inputs: Iterable[Tensor] = ()) -> str:
    """Return advice if an embedding has no row for an index, or "". inputs: those of the network, if they are known."""
    if not isinstance(error, IndexError) or "out of range in self" not in str(error):
        return ""
    integers = [tensor for tensor in inputs if not tensor.is_floating_point() and tensor.numel()]
    values = [f"{int(tensor.min())} to {int(tensor.max())}" for tensor in integers]
    these = f"; the integers among the inputs are {' and '.join(values)}" if values else ""
    return (
        f"{these}; the rows of an nn.Embedding are numbered from 0: number ids and categories so, without -1, and give "
        "those that are not in the training data a row"
    )


def _gradient_advice(error: Exception) -> str:
    """Return advice if a network computes a derivative of its output, but runs without gradients, or ""."""
    if "differentiated Tensors does not require grad" in str(error):
        return "; call requires_grad_() on an input before the output that torch.autograd.grad differentiates"
    if "does not require grad" not in str(error):
        return ""
    return (
        "; teachers and evaluations run in torch.no_grad(): put @torch.enable_grad() above a forward that calls "
        "torch.autograd.grad, as for forces"
    )


def device_advice(error: Exception, device: torch.device) -> str:
    """Return advice if user code uses a tensor that is not on the device of its inputs, or ""."""
    if "same device" not in str(error):
        return ""
    return (
        f"; kdkit moves the parameters and buffers of modules to {device}: make the other tensor a buffer, with "
        "register_buffer, or create it on the device of the inputs"
    )


def line_of_user_code(error: Exception) -> str:
    """Return the innermost line of code outside of installed packages, such as " (nets.py, line 9)", or ""."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "site-packages" not in frame.filename
        and Path(frame.filename).is_file()  # code from exec or torch.compile has no file
        and not any(Path(frame.filename).is_relative_to(library) for library in _LIBRARIES)
    ]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


@contextmanager
def explain_single_sample() -> Iterator[None]:
    """Raise DataError instead of torch's error if batch norm gets a batch of one sample, which a check may not see."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(_BATCH_NORM):
            raise
        raise DataError(
            f"a training batch has a single sample, but batch norm needs more ({error}); leave it out with "
            "DataLoader(..., drop_last=True), or in the batch_sampler or the stream"
        ) from error


def _takes_one(module: Any) -> bool:
    """Return whether a network has exactly one argument without a default."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(item.kind in positional and item.default is item.empty for item in _arguments(module)) == 1


def _arguments(module: Any) -> Collection[inspect.Parameter]:
    """Return the arguments of a network or function; none if they are unknown."""
    try:
        return parameters_by_name(getattr(module, "forward", module)).values()
    except (TypeError, ValueError):  # of compiled code
        return ()


def _dtype_advice(net: Net[Any], inputs: list[Tensor], error: Exception) -> str:
    """Return advice if a network fails for inputs of a dtype that is common in arrays, images or scans, or ""."""
    parameters = net.module.parameters() if isinstance(net.module, nn.Module) else ()
    expected = next((parameter.dtype for parameter in parameters if parameter.is_floating_point()), None)
    is_half = expected in (torch.float16, torch.bfloat16)
    if is_half and any(tensor.dtype == torch.float32 for tensor in inputs) and "type" in str(error):
        precision = "bf16" if expected == torch.bfloat16 else "fp16"
        view = "Images(..., " if isinstance(net.view, Images) else "Inputs("
        return (
            f"; give it inputs of its dtype, Net(..., view={view}dtype={expected})), or compute everything in half "
            f"precision, precision={precision!r}; keep networks in training in float32: .float()"
        )
    different = [tensor.dtype for tensor in inputs if tensor.dtype in _OF_ARRAYS]
    # Every message of torch about dtypes contains "type" or "dtype".
    if expected is None or not different or different[0] == expected or "type" not in str(error):
        return ""
    if "indices" in str(error):  # of an embedding
        return f"; ids of {different[0]} are no indices of torch: convert them with .long()"
    return (
        f"; the inputs are {str(different[0]).removeprefix('torch.')}, but the network is "
        f"{str(expected).removeprefix('torch.')}: convert them, for example with .to({expected})"
    )


def _channels_advice(net: Net[Any], inputs: list[Tensor], error: Exception) -> str:
    """Return advice if a convolution fails for inputs without channels or with channels last, or ""."""
    modules = net.module.modules() if isinstance(net.module, nn.Module) else ()
    first = next((module for module in modules if isinstance(module, tuple(_POSITIONS))), None)
    # The message of a convolution in torch contains both; those of batch norm and others do not.
    if first is None or "channels" not in str(error) or "expected input" not in str(error) or len(inputs) != 1:
        return ""
    shape = tuple(inputs[0].shape)
    names = next(positions for kind, positions in _POSITIONS.items() if isinstance(first, kind))
    takes = f"; a {type(first).__name__} takes (batch, channels, {', '.join(names)})"
    if len(shape) == len(names) + 1 and first.in_channels == 1:
        return f"{takes}, but these inputs have no channels: add them in the data, for example with .unsqueeze(1)"
    if len(shape) == len(names) + 2 and shape[-1] == first.in_channels != shape[1]:
        order = (0, len(shape) - 1, *range(1, len(shape) - 1))
        view = ", or by the view Images(channels_last=True)" if len(names) == 2 else ""
        return f"{takes}, but these inputs have their channels last: move them in the data, .permute{order}{view}"
    if len(shape) == len(names) + 2 and shape[1] != first.in_channels:
        return "; a view of your own gives this network other inputs than the data has, Net(..., view=...)"
    return ""


def _size_advice(inputs: list[Tensor], error: Exception) -> str:
    """Return advice if a network raises for the size of its images, as vision transformers do, or ""."""
    sizes = {str(size) for tensor in inputs if tensor.ndim == 4 for size in tensor.shape[2:]}
    # timm, torchvision and transformers raise these errors, with the expected size in the message.
    is_size = isinstance(error, AssertionError | ValueError) and re.search(r"\b(height|width|size)\b", str(error))
    if not is_size or sizes.isdisjoint(re.findall(r"\d+", str(error))):
        return ""
    return "; resize the images for this network alone: Net(..., view=Images(size=(height, width)))"
