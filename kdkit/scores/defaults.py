"""The scores of a recipe that names none."""

from kdkit.data import Task
from kdkit.scores.decided import Accuracy, MacroF1, MicroF1
from kdkit.scores.ranked import MacroAUPRC
from kdkit.scores.regression import R2
from kdkit.scores.score import Score


def default_scores(task: Task) -> tuple[Score, ...]:
    """Return the scores that fit the task."""
    if task == "multiclass":
        return (Accuracy(), MacroF1())
    if task == "multilabel":
        return (MacroAUPRC(), MacroF1(), MicroF1())
    return (R2(),)
