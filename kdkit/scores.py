"""How well a net does: thresholds fitted on one split, figures reported on another."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from kdkit.data import Task
from kdkit.errors import DataError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """What a net said about a split: ids (n,) or None, labels (n,) or (n, classes), outputs (n, classes) logits."""

    labels: NDArray[Any]
    outputs: NDArray[Any]
    classes: tuple[str, ...]
    ids: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A figure, the same by class where it has classes, and what a reader must know of it."""

    value: float
    by_class: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@runtime_checkable
class Score(Protocol):
    """A figure of merit; greater is better. `fit` returns one with its thresholds set, and leaves `self` as it was."""

    @property
    def name(self) -> str:
        """The name in tables; unique in a recipe."""
        ...

    def fit(self, select: Predictions) -> Self:
        """Choose what has to be chosen (thresholds) on the selection split."""
        ...

    def score(self, test: Predictions) -> Scored:
        """Report on another split; classes without positives are named in the note."""
        ...


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of the samples whose greatest output is their class: multiclass, in [0, 1]."""

    @property
    def name(self) -> str:
        """The name in tables."""
        return "accuracy"

    def fit(self, select: Predictions) -> Self:
        """There is nothing to choose."""
        return self

    def score(self, test: Predictions) -> Scored:
        """Return the share, and each class's recall."""
        right = test.outputs.argmax(1) == test.labels
        recalls = {
            name: float(right[test.labels == index].mean())
            for index, name in enumerate(test.classes)
            if (test.labels == index).any()
        }
        return Scored(value=float(right.mean()), by_class=recalls, note=_without(test, recalls))


@dataclass(frozen=True, slots=True)
class R2:
    """Coefficient of determination, mean over the columns: regression, at most 1."""

    @property
    def name(self) -> str:
        """The name in tables."""
        return "r2"

    def fit(self, select: Predictions) -> Self:
        """There is nothing to choose."""
        return self

    def score(self, test: Predictions) -> Scored:
        """Return the coefficient."""
        from sklearn.metrics import r2_score  # scikit-learn takes a second to import

        return Scored(value=float(r2_score(test.labels, test.outputs)))


@dataclass(frozen=True, slots=True)
class MacroAUPRC:
    """Average precision, mean over the classes with positives, in [0, 1] (scikit-learn's average_precision_score)."""

    @property
    def name(self) -> str:
        """The name in tables."""
        return "macro_auprc"

    def fit(self, select: Predictions) -> Self:
        """There is nothing to choose: it ranks."""
        return self

    def score(self, test: Predictions) -> Scored:
        """Return the mean, each class's own, and which classes had no positives."""
        from sklearn.metrics import average_precision_score  # scikit-learn takes a second to import

        return _ranked(test, average_precision_score)


@dataclass(frozen=True, slots=True)
class MacroAUROC:
    """Area under the ROC curve, mean over the classes with positives and negatives, in [0, 1] (scikit-learn)."""

    @property
    def name(self) -> str:
        """The name in tables."""
        return "macro_auroc"

    def fit(self, select: Predictions) -> Self:
        """There is nothing to choose: it ranks."""
        return self

    def score(self, test: Predictions) -> Scored:
        """Return the mean, each class's own, and which classes are undefined."""
        from sklearn.metrics import roc_auc_score  # scikit-learn takes a second to import

        return _ranked(test, roc_auc_score, negatives_too=True)


@dataclass(frozen=True, slots=True)
class F1:
    """F1 over classes: "macro" is the mean of each class's, "micro" that of all decisions together, in [0, 1].

    Multilabel: a class is said where its output is at least its threshold, which `fit` chooses for the best F1 of that
    class on the selection split (0, a probability of one half, before). Multiclass: the greatest output is said.
    """

    average: Literal["macro", "micro"] = "macro"
    thresholds: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"{self.average}_f1"

    def fit(self, select: Predictions) -> Self:
        """Return the score with the thresholds that are best on this split."""
        if select.labels.ndim == 1:
            return self
        chosen = tuple(
            best_f1_threshold(select.labels[:, column], select.outputs[:, column])
            for column in range(len(select.classes))
        )
        return replace(self, thresholds=chosen)

    def score(self, test: Predictions) -> Scored:
        """Return the mean, each class's own, and which classes had no positives."""
        truth = _one_column_a_class(test)
        if test.labels.ndim == 1:
            said = np.eye(len(test.classes), dtype=bool)[test.outputs.argmax(1)]
        else:
            said = test.outputs >= np.asarray(self.thresholds if self.thresholds is not None else 0.0)
        hits, said_count, true_count = (truth & said).sum(0), said.sum(0), truth.sum(0)
        by_class = {
            name: float(2 * hits[column] / (said_count[column] + true_count[column]))
            for column, name in enumerate(test.classes)
            if true_count[column]
        }
        if self.average == "macro":
            value = float(np.mean(list(by_class.values()))) if by_class else float("nan")
        else:
            value = float(2 * hits.sum() / max(1, said_count.sum() + true_count.sum()))
        return Scored(value=value, by_class=by_class, note=_without(test, by_class))


def MacroF1() -> F1:  # noqa: N802  # reads as the class that it is one setting of
    """Return F1 as the mean of each class's."""
    return F1("macro")


def MicroF1() -> F1:  # noqa: N802  # reads as the class that it is one setting of
    """Return F1 of all decisions together."""
    return F1("micro")


def default_scores(task: Task) -> tuple[Score, ...]:
    """Return the scores of a recipe that names none."""
    if task == "multiclass":
        return (Accuracy(), MacroF1())
    if task == "multilabel":
        return (MacroAUPRC(), MacroF1(), MicroF1())
    return (R2(),)


def best_f1_threshold(labels: NDArray[Any], outputs: NDArray[Any]) -> float:
    """Return the output at or above which saying a class gives the best F1; labels and outputs (n,).

    Between two outputs the middle is taken. Without a positive the class is never said: infinity.
    """
    positives = labels.sum()
    if not positives:
        return float("inf")
    order = np.argsort(-outputs, kind="stable")
    ranked = outputs[order].astype(np.float64)
    hits = np.cumsum(labels[order])
    f1 = 2 * hits / (np.arange(1, len(ranked) + 1) + positives)
    f1[:-1][ranked[:-1] == ranked[1:]] = -1  # equal outputs are said together
    last = int(f1.argmax())
    return float((ranked[last] + ranked[last + 1]) / 2) if last + 1 < len(ranked) else float(ranked[last])


def _one_column_a_class(of: Predictions) -> NDArray[np.bool_]:
    if of.labels.ndim == 1:
        return np.eye(len(of.classes), dtype=bool)[of.labels.astype(np.int64)]
    return of.labels > 0.5


def _ranked(test: Predictions, measure: Any, *, negatives_too: bool = False) -> Scored:
    truth = _one_column_a_class(test)
    if not np.isfinite(test.outputs).all():
        raise DataError("outputs that are not finite cannot be ranked; did training diverge?")
    by_class = {
        name: float(measure(truth[:, column], test.outputs[:, column]))
        for column, name in enumerate(test.classes)
        if truth[:, column].any() and not (negatives_too and truth[:, column].all())
    }
    value = float(np.mean(list(by_class.values()))) if by_class else float("nan")
    lacking = "no positives, or no negatives" if negatives_too else "no positives"
    return Scored(value=value, by_class=by_class, note=_without(test, by_class, lacking))


def _without(test: Predictions, by_class: Mapping[str, float], lacking: str = "no positives") -> str:
    left_out = [name for name in test.classes if name not in by_class]
    return f"{lacking}: {', '.join(left_out)}" if left_out else ""
