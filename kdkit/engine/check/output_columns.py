"""Find outputs that do not have a column for each class."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from kdkit.losses.base import BuildContext
from kdkit.losses.validation import ONE_OUTPUT
from kdkit.nets.net import Net
from kdkit.teachers.base import Teacher
from kdkit.utils.reprs import describe_names


def columns_problem(net: Net[Any], output: Tensor, labels: Tensor, context: BuildContext) -> str | None:
    """Return the problem of outputs whose shape does not fit the classes and the label positions, or None."""
    classes, shape = net.classes or context.classes, _batch_shape(output.shape)
    positions = labels.shape[labels.ndim - context.position_dims :]
    if context.position_dims and not context.has_labels:
        positions = output.shape[2:]
        if net.channels_last is None:
            return (
                f"net {net.name!r} has outputs of shape {shape}, and there are no labels to tell which dimension has "
                "the classes; pass Net(..., channels_last=True) if it is the last one, or False"
            )
    if labels.ndim > 2 >= output.ndim:
        return (
            f"net {net.name!r} has outputs of shape {shape} for labels of shape {_batch_shape(labels.shape)}, one per "
            "pixel or token; return outputs per pixel or token from the network, or one label per sample from the data"
        )
    if context.task == "regression":
        return _order_problem(net, context)
    if output.shape[1:] == (len(classes), *positions):
        return None
    # Of classes in the last dimension, nothing but the positions of the labels says so.
    if positions and output.ndim == 2 + len(positions) and len(classes) in (output.shape[1], output.shape[-1]):
        return (
            f"net {net.name!r} has outputs of shape {shape} for labels of shape {_batch_shape(labels.shape)}; give "
            "them the same positions, for example with nn.functional.interpolate at the end of the network, or in a "
            "function Net(..., element=...), or, if there are fewer labels, as for CTC, by padding these with the "
            "ignore_index"
        )
    advice = _class_advice(net, output, context)
    if labels.ndim > 1 and not positions and output.ndim > 2:
        advice = "; if the labels are classes of positions, pass TorchData(..., task='multiclass')"
    if output.ndim == 1:
        return f"net {net.name!r} has outputs of shape (batch,); {ONE_OUTPUT}"
    owner = "its" if net.classes else "the data's"
    return (
        f"net {net.name!r} has outputs of shape {shape}, but {owner} {len(classes)} classes need "
        f"{_batch_shape((0, len(classes), *positions))}; give it as many outputs, or name their classes with "
        f"Net(..., classes=...){advice}"
    )


def class_names_problem(teacher: Teacher, output: Tensor) -> str | None:
    """Return the problem of a teacher whose `classes` do not name each column of its outputs, or None."""
    classes = getattr(teacher, "classes", None)
    if not classes or output.shape[1:2] == (len(classes),):
        return None
    name = f"net {teacher.name!r}" if isinstance(teacher, Net) else repr(teacher.name)
    return (
        f"{name} has outputs of shape {_batch_shape(output.shape)} and {len(classes)} classes; its `classes` must "
        "name each column of its outputs"
    )


def is_about_classes(
    net: Net[Any], output: Tensor, labels: Tensor, context: BuildContext, students: Sequence[Tensor]
) -> bool:
    """Whether the outputs of a teacher are about the data's classes. Those of a feature teacher need not be.

    students: the outputs of the students of its stage. Numbers may be packed in another form than the labels.
    """
    if context.task == "regression":
        is_like_student = any(output.shape[1:] == student.shape[1:] for student in students)
        return is_like_student or output[0].numel() == labels[0].numel()
    classes = net.classes or context.classes
    is_by_class = output.ndim == 2 + context.position_dims and output.shape[1] == len(classes)
    return is_by_class and not set(classes).isdisjoint(context.classes)


def _order_problem(net: Net[Any], context: BuildContext) -> str | None:
    """Return the problem of outputs of a regression whose columns have the data's names in another order, or None.

    Numbers may have any shape, so columns cannot be selected by their names, as those of classes are.
    """
    columns = {name: index for index, name in enumerate(context.classes)}
    names = net.classes or ()
    if all(columns.get(name, index) == index for index, name in enumerate(names)):
        return None
    of_data = describe_names(context.classes)
    return (
        f"net {net.name!r} has the outputs {describe_names(names)}, and the data has {of_data}; "
        "a regression compares columns by their position, so the network must return them in the order of the data"
    )


def _class_advice(net: Net[Any], output: Tensor, context: BuildContext) -> str:
    """Return advice on classes that were derived from the largest label, or "" if the classes have names."""
    count = len(context.classes)
    if net.classes or context.classes != tuple(map(str, range(count))) or output.ndim < 2:
        return ""
    outputs = output.shape[1]
    if outputs == count - 1 and context.task == "multiclass":
        return f"; if labels are numbered from 1 to {outputs}, subtract 1: classes are numbered from 0"
    if outputs > count:
        return (
            f"; if the last classes have no samples, pass the number of all: TorchData(..., classes={outputs}); if "
            f"only this network has more, such as a padded vocabulary: Net(..., classes={outputs})"
        )
    return ""


def _batch_shape(shape: Sequence[int]) -> str:
    return f"(batch{''.join(f', {size}' for size in shape[1:])})"
