"""Find the problems of networks' outputs: their columns, class names, and labels that do not fit their losses."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from kdkit.engine.check.facts import Facts
from kdkit.engine.stage.terms import uses_labels
from kdkit.losses.base import BuildContext, allows_any_classes, requirements_of
from kdkit.losses.multi_teacher import PerTeacher
from kdkit.losses.validation import ONE_OUTPUT
from kdkit.nets.net import Net
from kdkit.nets.taps import HeadTap
from kdkit.recipe.recipe import teachers_of
from kdkit.teachers.ema import Ema
from kdkit.teachers.past import Past
from kdkit.utils.reprs import describe_names


def output_problems(facts: Facts) -> Iterator[str]:
    """Yield the problems of outputs."""
    yield from _columns_of_students(facts)
    yield from _columns_of_teachers(facts)
    yield from _soft_labels(facts)


def _columns_of_students(facts: Facts) -> Iterator[str]:
    for net in facts.module.students:
        if net.name in facts.eval_outputs:  # otherwise nothing uses its outputs
            outputs = (facts.student_outputs[net.name], facts.eval_outputs[net.name])
            problems = (_columns_problem(net, output, facts) for output in outputs)
            yield from filter(None, dict.fromkeys(problems))


def _columns_of_teachers(facts: Facts) -> Iterator[str]:
    compared = {  # by classes
        teacher
        for match in facts.stage.matches
        if all(side is None or isinstance(side, HeadTap) for side in (match.student, match.target))
        and not allows_any_classes(match.loss)
        for teacher in teachers_of(match)
    }
    # Aligned by the names of their columns, even in terms that also compare features.
    terms = [term for term in facts.module.terms if term.alignment is not None and term.alignment.targets]
    aligned = {name for term in terms for name in term.teachers}
    for teacher in facts.stage.teachers:
        output, classes = facts.teacher_outputs[teacher.name].output, getattr(teacher, "classes", None)
        if isinstance(teacher, Net) and teacher in compared:
            yield from filter(None, [_columns_problem(teacher, output, facts)])
        elif teacher.name not in aligned or isinstance(teacher, Ema | Past):  # their net is checked as a student
            continue
        elif classes and output.shape[1:2] != (len(classes),):
            name = f"net {teacher.name!r}" if isinstance(teacher, Net) else repr(teacher.name)
            yield (
                f"{name} has outputs of shape {_batch_shape(output.shape)} and {len(classes)} classes; its `classes` "
                "must name each column of its outputs"
            )


def _soft_labels(facts: Facts) -> Iterator[str]:
    """Yield terms that need class indices, if the labels are soft, (batch, classes)."""
    if facts.context.task != "multiclass" or facts.batch.labels.ndim == 1 or facts.context.position_dims:
        return
    for term in facts.module.terms:
        reason = None
        if "hard_labels" in requirements_of(term.loss):
            reason = f"{type(term.loss).__name__} needs one class per sample"
        if term.alignment is not None and term.alignment.drops_samples:
            reason = "it leaves out samples whose class one of the sides lacks, which needs one class per sample"
        if isinstance(term.loss, PerTeacher) and term.loss.weights == "confidence":
            reason = "weights='confidence' compares the teachers' outputs with one class per sample"
        if reason is not None:
            yield (
                f"term {term.label!r}: {reason}, but the labels are soft; pass class indices, such as "
                "labels.argmax(1), and no batch_transform that mixes samples"
            )


def feature_teachers(facts: Facts) -> list[Net[Any]]:
    """Return teachers whose outputs are not about the data's classes; they are matched by features only."""
    outputs = {net: facts.teacher_outputs.get(net.name) for net in facts.stage.teachers if isinstance(net, Net)}
    return [net for net, output in outputs.items() if output and not _is_about_classes(net, output.output, facts)]


def _is_about_classes(net: Net[Any], output: Tensor, facts: Facts) -> bool:
    context = facts.context
    if not output.ndim:  # such as a loss that a model computes
        return False
    if context.task == "regression":  # numbers may be packed in another form than the labels
        is_like_student = any(output.shape[1:] == student.shape[1:] for student in facts.eval_outputs.values())
        return is_like_student or output[0].numel() == facts.batch.labels[0].numel()
    classes = net.classes or context.classes
    is_by_class = output.ndim == 2 + context.position_dims and output.shape[1] == len(classes)
    return is_by_class and not set(classes).isdisjoint(context.classes)


def _columns_problem(net: Net[Any], output: Tensor, facts: Facts) -> str | None:
    """Return the problem of outputs whose shape does not fit the classes and the label positions, or None."""
    labels, context = facts.batch.labels, facts.context
    classes = net.classes or context.classes
    has_outputs = f"net {net.name!r} has outputs of shape {_batch_shape(output.shape)}"
    for_labels = f"{has_outputs} for labels of shape {_batch_shape(labels.shape)}"
    positions = labels.shape[labels.ndim - context.position_dims :]
    if context.position_dims and not context.has_labels:
        positions = output.shape[2:]
        if net.channels_last is None:
            return (
                f"{has_outputs}, and there are no labels to tell which dimension has the classes; pass "
                "Net(..., channels_last=True) if it is the last one, or False"
            )
    if context.task == "regression":  # losses and metrics of numbers compare shapes themselves, which may be packed
        return _order_problem(net, context)
    if (labels.ndim > 2 or positions) and output.ndim <= 2:
        by_class = "; if each class has a label, pass task='multilabel'" if labels.shape == output.shape else ""
        return (
            f"{for_labels}, one per pixel or token; return outputs per pixel or token from the network, or one label "
            f"per sample from the data{by_class}"
        )
    if output.shape[1:] == (len(classes), *positions):
        return None
    if positions and labels.ndim == output.ndim > 2 and output.shape[1:] == (*positions, len(classes)):
        return (
            f"{for_labels}, whose second dimension has the classes; if the {output.shape[-1]} are the classes, pass "
            f"Net(..., channels_last=True), which moves those of the outputs; if the {labels.shape[-1]} are, move "
            "those of the labels, labels.movedim(-1, 1)"
        )
    # Of classes in the last dimension, nothing but the positions of the labels says so.
    if positions and output.ndim == 2 + len(positions) and len(classes) in (output.shape[1], output.shape[-1]):
        return (
            f"{for_labels}; give them the same positions, for example with nn.functional.interpolate at the end of the "
            "network, or in a function Net(..., element=...), or, if there are fewer labels, as for CTC, by padding "
            "these with the ignore_index"
        )
    advice = _class_advice(net, output, context)
    if labels.ndim == 2 and positions and not advice:
        advice = "; if the labels are numbers, such as counts, make them floats: labels.float()"
    if positions and positions[-1] == 1 and output.shape[1:] == (len(classes), *positions[:-1]):
        advice = "; masks (height, width, 1) need labels.squeeze(-1) in the data"
    if positions and len(classes) == 2 and output.shape[1:] == (1, *positions):
        advice = "; labels for one output are floats (samples, 1, *positions), and TorchData(..., classes=1)"
    if positions and labels.ndim == output.ndim and output.shape[1] in (labels.shape[1], labels.shape[-1]):
        dim = 1 if labels.shape[1] == output.shape[1] else -1
        advice = (
            f"; if the labels are 0 and 1 by class, make them class indices, labels.argmax({dim}), or, if a position "
            "may have several classes, floats (samples, classes, *positions)"
        )
    if labels.ndim > 1 and not positions and output.ndim > 2:
        advice = "; if the labels are classes of positions, pass TorchData(..., task='multiclass')"
    if output.ndim == 1:
        return f"net {net.name!r} has outputs of shape (batch,); {ONE_OUTPUT}"
    if not any(map(uses_labels, facts.stage.terms)) and net.classes is None and not positions:
        advice = f"; if outputs are embeddings instead of classes, pass task='regression'{advice}"
    owner = "its" if net.classes else "the data's"
    return (
        f"{has_outputs}, but {owner} {len(classes)} classes need {_batch_shape((0, len(classes), *positions))}; give "
        f"it as many outputs, or name their classes with Net(..., classes=...){advice}"
    )


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
