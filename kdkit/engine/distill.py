"""Distillation in one call, for one's own networks on one's own torch data."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from kdkit.data.batch import Batch
from kdkit.data.dataset import Task
from kdkit.data.torch_data import TorchData, class_names
from kdkit.data.torch_splits import DatasetOrLoader, first_batch
from kdkit.engine.run import Result, run
from kdkit.errors import KdkitError
from kdkit.losses import Loss, PerLabelSoftTargets, SoftTargets
from kdkit.nets.net import Net
from kdkit.recipe.objective import Truth
from kdkit.recipe.recipe import Recipe
from kdkit.recipe.schedules import Parallel
from kdkit.recipe.training import Training
from kdkit.utils.modules import eval_mode

_TRUTHS: dict[Task, type[nn.Module]] = {
    "multiclass": nn.CrossEntropyLoss,
    "multilabel": nn.BCEWithLogitsLoss,
    "regression": nn.MSELoss,
}


def distill(
    teacher: nn.Module | Net[Any] | Sequence[nn.Module | Net[Any]],
    student: nn.Module | Net[Any],
    train: DatasetOrLoader,
    validation: DatasetOrLoader,
    test: DatasetOrLoader | None = None,
    *,
    kd_loss: Loss | None = None,
    label_weight: float = 0.5,
    training: Training | None = None,
    classes: Sequence[str] | None = None,
    **options: Any,
) -> Result:
    """Train a student on labels and on a trained teacher, or several, and return the scores of all.

    train, valid, test: torch Datasets or DataLoaders that yield `(inputs, labels)`; see TorchData. valid is what epochs
    are chosen on, and what is reported on where there is no test.
    guide: the loss against a teacher's outputs; by the data's task SoftTargets(), PerLabelSoftTargets() or MSELoss().
    balance: the share of the labels' own loss, in [0, 1]. training: 10 epochs of Adam where None.
    classes: their names; where None the training data's own, as ImageFolder has them, if the student has as many
    outputs, and else numbers, as many as it has outputs. options: those of `kdkit.run`.
    """
    pupil = student if isinstance(student, Net) else Net("student", student)
    nets = tuple(teacher) if isinstance(teacher, Sequence) else (teacher,)
    called = ["teacher"] if len(nets) == 1 else [f"teacher {count}" for count in range(1, len(nets) + 1)]
    masters = [
        each if isinstance(each, Net) else Net(name, each, trained=True)
        for name, each in zip(called, nets, strict=True)
    ]
    names = classes if classes is not None else _classes(pupil, train)
    data = TorchData(train, validation, test, classes=names)
    guides: dict[Task, Loss] = {
        "multiclass": SoftTargets(),
        "multilabel": PerLabelSoftTargets(),
        "regression": nn.MSELoss(),
    }
    schedule = Parallel(
        *masters,
        pupil,
        truth=Truth(_TRUTHS[data.task]()),
        kd_loss=kd_loss if kd_loss is not None else guides[data.task],
        label_weight=label_weight,
        training=training or Training(epochs=10),
    )
    return run(Recipe(data=data, schedule=schedule, name="distill"), **options)


def _classes(net: Net[Any], train: DatasetOrLoader) -> Sequence[str] | None:
    """Name the classes after a net's outputs; None where the net fails, which `check` is left to report."""
    batch = first_batch("train", train)
    try:
        count = _outputs(net, batch)
    except KdkitError:
        raise
    except Exception:  # a stranger's net raises what it will, and may yet run on the device of the run
        return None
    named = class_names(train)
    return named if named is not None and len(named) == count else [str(index) for index in range(count)]


@torch.no_grad()
def _outputs(net: Net[Any], batch: Batch) -> int:
    """Count a net's outputs on its own device, leaving it in its mode."""
    with eval_mode(net.network):
        first = next(net.network.parameters(), None)
        output = net(batch if first is None else batch.to(first.device))
    return output.shape[-1] if output.ndim > 1 else 1
