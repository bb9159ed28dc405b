"""The default metrics of a recipe."""

from kdkit.data.dataset import Task
from kdkit.metrics.base import Metric
from kdkit.metrics.classification import Accuracy, MacroF1, MeanIoU, MicroF1
from kdkit.metrics.ranking import MacroAUPRC
from kdkit.metrics.regression import R2


def default_metrics(task: Task, position_dims: int = 0) -> tuple[Metric, ...]:
    """Return the metrics of the task; the first one chooses the best epoch. position_dims: see `Data`."""
    if position_dims and (task == "multilabel" or position_dims > 1):
        return (MeanIoU(), MacroF1()) if task == "multilabel" else (MeanIoU(), Accuracy())
    if task == "multiclass":
        return (Accuracy(), MacroF1())
    if task == "multilabel":
        # The first metric needs no thresholds, so the choice of the epoch does not depend on them.
        return (MacroAUPRC(), MacroF1(), MicroF1())
    return (R2(),)
