"""Distillation in one call, for your own networks and torch data."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Unpack

from torch import Tensor, nn
from torch.utils.data import Sampler

from kdkit.data.batch import nested_tensors
from kdkit.data.dataset import Task
from kdkit.data.samples import SampleKeys
from kdkit.data.torch_data import TorchData
from kdkit.data.torch_splits import Collate, DatasetOrLoader, as_split, first_batch
from kdkit.data.visible_labels import class_names
from kdkit.engine.failures.network_errors import input_advice, line_of_user_code
from kdkit.engine.options import RunFields, RunOptions, require_fields
from kdkit.engine.run import Result, run
from kdkit.errors import DataError, KdkitError, RecipeError, first_line
from kdkit.losses.base import Loss
from kdkit.losses.label_losses import IgnoreUnknown, SampleWeighted
from kdkit.losses.logits import PerLabelSoftTargets, SoftTargets
from kdkit.metrics.base import Metric
from kdkit.nets.net import Net, output_shape
from kdkit.recipe.objective import Truth
from kdkit.recipe.recipe import Recipe
from kdkit.recipe.schedules import Parallel
from kdkit.recipe.training import Training
from kdkit.utils.devices import default_modes

_LABEL_LOSSES: dict[Task, type[nn.Module]] = {
    "multiclass": nn.CrossEntropyLoss,
    "multilabel": nn.BCEWithLogitsLoss,
    "regression": nn.MSELoss,
}


class DistillFields(RunFields, total=False):
    """The keyword arguments of `kdkit.run` that `distill` takes too."""

    options: RunOptions | None
    callbacks: Sequence[object]


@default_modes()
def distill(
    teacher: nn.Module | Net[Any] | Sequence[nn.Module | Net[Any]],
    student: nn.Module | Net[Any],
    train: DatasetOrLoader,
    validation: DatasetOrLoader,
    test: DatasetOrLoader | None = None,
    *,
    kd_loss: Loss | None = None,
    temperature: float | None = None,
    label_weight: float = 0.5,
    epochs: int | None = None,
    training: Training | None = None,
    metrics: Sequence[Metric] = (),
    task: Task | None = None,
    classes: Sequence[str] | int | None = None,
    draws: int | None = None,
    unknown: float | None = None,
    ignore_index: int | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    lengths: Sequence[float] | Tensor | None = None,
    sampler: Sampler[int] | Sequence[int] | None = None,
    labels: str | None = None,
    batch_transform: Callable[[Any, Tensor], tuple[Any, Tensor]] | None = None,
    evaluation_samples: int | None = None,
    **options: Unpack[DistillFields],
) -> Result:
    """Train a student on labels and on one or more trained teachers, and return the metrics of all networks.

    train, validation, test: torch Datasets or DataLoaders that yield `(inputs, labels)`; see TorchData. Without labels,
    train is Unlabelled(dataset), and the student learns from its teachers alone. The best epoch is chosen on
    `validation`; metrics are computed on `test`, or on `validation` if there is no test data.
    kd_loss: the loss against a teacher's outputs. If None, SoftTargets(), PerLabelSoftTargets() or MSELoss(), depending
    on the task. For terms on features, or several losses, write a Recipe. temperature: of the default loss; None for
    its default. label_weight: the weight of the loss on the labels, in [0, 1]; the teachers share the rest. epochs: the
    number of epochs with Adam; 10 if None. training: all training options, instead of epochs.
    metrics: see `Recipe`; the first one chooses the epoch. task: the kind of labels; derived from them if None.
    classes: their names or their number. If None, the names in the training data, as in ImageFolder, or otherwise
    numbers, as many as the student has outputs. draws, unknown, ignore_index, collate_fn, lengths, sampler,
    labels, batch_transform, evaluation_samples: see TorchData. options: those of `kdkit.run`.

    Raises RecipeError if both epochs and training are passed, or both kd_loss and temperature.
    """
    require_fields(distill, options, DistillFields)
    if epochs is not None and training is not None:
        raise RecipeError("training has its own epochs: pass training=Training(epochs=...), or epochs alone")
    if temperature is not None and kd_loss is not None:
        raise RecipeError("kd_loss has its own temperature: pass kd_loss=SoftTargets(temperature=...), or leave it out")
    student_net = student if isinstance(student, Net) else Net("student", student)
    teachers = _teacher_nets(teacher)
    # Without classes, the outputs are counted. If that fails, the data may still have them.
    counted, failure = _count_classes(student_net, train, labels, collate_fn) if classes is None else (classes, None)
    try:
        data = TorchData(
            train,
            validation,
            test,
            classes=counted,
            task=task,
            draws=draws,
            unknown=unknown,
            ignore_index=ignore_index,
            collate_fn=collate_fn,
            lengths=lengths,
            sampler=sampler,
            labels=labels,
            batch_transform=batch_transform,
            evaluation_samples=evaluation_samples,
        )
    except DataError as error:
        if failure is None:
            raise
        raise DataError(f"{error}; counting the outputs instead failed: {failure}") from error
    if classes is None:
        data.notices = (*data.notices, *_notices_of_empty_classes(student_net, data))
    schedule = Parallel(
        *teachers,
        student_net,
        truth=Truth(_label_loss(data)),
        kd_loss=kd_loss if kd_loss is not None else _default_loss(data.task, temperature),
        label_weight=label_weight if data.has_labels else 0,
        training=training or Training(epochs=10 if epochs is None else epochs),
    )
    return run(Recipe(data=data, schedule=schedule, metrics=metrics, name="distill"), **options)


def _teacher_nets(teacher: nn.Module | Net[Any] | Sequence[nn.Module | Net[Any]]) -> list[Net[Any]]:
    """Return each teacher as a trained Net. A module is named "teacher", or with its number if there are several."""
    modules = tuple(teacher) if isinstance(teacher, Sequence) else (teacher,)
    names = ["teacher"] if len(modules) == 1 else [f"teacher {number}" for number in range(1, len(modules) + 1)]
    return [
        module if isinstance(module, Net) else Net(name, module, trained=True)
        for name, module in zip(names, modules, strict=True)
    ]


def _label_loss(data: TorchData) -> nn.Module:
    """Return the loss on the labels. It ignores missing labels, and uses the weights of samples if there are any."""
    loss = _LABEL_LOSSES[data.task]()
    if data.task == "multiclass" and data.ignored_labels:
        loss = nn.CrossEntropyLoss(ignore_index=data.ignored_labels[0])
    if data.has_unknown:
        loss = IgnoreUnknown(loss)
    return SampleWeighted(loss) if data.has_weights else loss


def _default_loss(task: Task, temperature: float | None) -> Loss:
    if task == "regression":
        if temperature is not None:
            raise RecipeError("a temperature softens probabilities, but regression has none; leave it out")
        return nn.MSELoss()
    loss = SoftTargets if task == "multiclass" else PerLabelSoftTargets
    return loss() if temperature is None else loss(temperature=temperature)


def _count_classes(
    net: Net[Any], train: DatasetOrLoader, labels: str | None, collate_fn: Collate | None
) -> tuple[Sequence[str] | None, str | None]:
    """Return a class name per output of a network, and None; or None and the reason if it fails for a batch.

    `check` reports a failure later, because the network may still run on the device of the run.
    """
    batch = first_batch(as_split("train", train, SampleKeys(labels), collate_fn=collate_fn))
    try:
        count = output_shape(net, batch)[1]
    except KdkitError:
        raise
    except Exception as error:  # a network may raise anything
        reason = f"fails for the train data: {first_line(error)}"
        keys = [*batch.inputs] if isinstance(batch.inputs, Mapping) else []
        advice = input_advice(net, nested_tensors(batch.inputs), keys, error)
        if advice:
            raise DataError(f"net {net.name!r} {reason}{line_of_user_code(error)}{advice}") from error
        return None, f"net {net.name!r} {reason}"
    names = class_names(train)
    # A dataset with two class names, such as absent and present, may have a single column of labels.
    return names if names is not None and count > 1 else [str(index) for index in range(count)], None


def _notices_of_empty_classes(net: Net[Any], data: TorchData) -> Iterator[str]:
    """Yield a notice if the last classes, which were counted from the outputs, have no sample in any split."""
    splits = [split for split in (data.train, data.validation, data.test) if split is not None]
    labels = [split.labels for split in splits]
    visible = [rows for rows in labels if rows is not None and rows.ndim == 1 and len(rows)]
    if data.task != "multiclass" or len(visible) < len(labels):
        return
    largest = max(int(rows.max()) for rows in visible)
    if largest + 1 < len(data.classes):
        yield (
            f"net {net.name!r} has {len(data.classes)} outputs, but no label of the data is above {largest}; if there "
            f"are only {largest + 1} classes, give the networks as many outputs"
        )
