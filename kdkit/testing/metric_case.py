"""Fit and compute a metric on examples, and turn failures into ContractErrors that name the metric and the example."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdkit.data.dataset import Task
from kdkit.errors import ContractError, describe
from kdkit.metrics.base import Metric, MetricResult, PositionReducing, Predictions, is_better, lower_is_better, one_hot

_SAMPLES, _CLASSES = 60, 10
_POSITIONS: dict[int, tuple[int, ...]] = {0: (), 1: (6,), 2: (4, 3), 3: (3, 2, 2)}


@dataclass(frozen=True, slots=True)
class Example:
    """Predictions for a metric. description: for error messages.

    For labels per position, the outputs are logits, (samples, classes, *positions).
    """

    description: str
    predictions: Predictions

    def select_rows(self, description: str, rows: NDArray[Any]) -> "Example":
        """Return the samples in these rows."""
        return Example(description, self.predictions.rows(rows))

    def change(self, description: str, **columns: Any) -> "Example":
        """Return the example with other labels, outputs or ids."""
        return Example(description, replace(self.predictions, **columns))


class MetricCase:
    """A metric and the examples that it is checked on.

    correct: predictions of a network that is right. wrong: the same outputs for other samples. mixed: half of each.
    """

    def __init__(self, metric: Metric, correct: Predictions, task: Task, position_dims: int) -> None:
        self.metric, self.task, self.position_dims = metric, task, position_dims
        self.name = f"metric {metric.name!r}"
        self.rows = np.arange(len(correct))
        is_correct = self.rows % 2 == 0
        random, order = np.random.default_rng(0), self.rows.copy()
        for half in (is_correct, ~is_correct):  # apart, so that no two samples of the mixed ones have the same outputs
            order[half] = random.permutation(self.rows[half])
        shuffled = correct.outputs[order]
        self.correct = Example("correct predictions", correct)
        self.wrong = self.correct.change("wrong predictions", outputs=shuffled)
        mixed = correct.outputs.copy()
        mixed[~is_correct] = shuffled[~is_correct]
        self.mixed = self.correct.change("predictions of which half are wrong", outputs=mixed)

    def fit(self, validation: Example | None = None, advice: str = "") -> Metric:
        """Return the metric fitted on an example, by default a correct one. Raises ContractError if it fails."""
        example = validation or self.correct
        fitted: Any = self.call("fit", self.metric.fit, example, advice)
        if isinstance(fitted, type) or not isinstance(fitted, Metric):
            raise ContractError(
                f"fit of {self.name} must return a metric with its thresholds, or self; got {describe(fitted)}"
            )
        for attribute, of in (("name", lambda metric: metric.name), ("lower_is_better", lower_is_better)):
            if of(fitted) != of(self.metric):
                raise ContractError(
                    f"fit of {self.name} must return a metric with the same {attribute}; got {of(fitted)!r} instead of "
                    f"{of(self.metric)!r}"
                )
        return fitted

    def compute(self, fitted: Metric, test: Example, advice: str = "") -> MetricResult:
        """Return the result on an example. Raises ContractError unless it is a MetricResult with a valid value."""
        result: Any = self.call("compute", fitted.compute, test, advice)
        if not isinstance(result, MetricResult):
            raise ContractError(
                f"compute of {self.name} must return MetricResult(value=...); got a {type(result).__name__}"
            )
        classes = test.predictions.classes
        if unknown := [name for name in result.by_class if name not in classes]:
            raise ContractError(
                f"{self.name} has values by class for {', '.join(map(repr, unknown))}; expected names of "
                f"test.classes, such as {classes[0]!r}"
            )
        if np.isinf(result.value) and is_better(self.metric, result.value, 0.0):
            raise self.error(
                test,
                f"is {result.value}, which is better than any other value, so the best epoch would be one of these; if "
                "it is undefined, return MetricResult(value=float('nan'))",
            )
        return result

    def finite(self, fitted: Metric, test: Example, advice: str = "") -> float:
        """Return the value on an example. Raises ContractError unless it is finite."""
        value = self.compute(fitted, test, advice).value
        if not np.isfinite(value):
            raise self.error(test, f"is {value}, not a finite number")
        return value

    def predictions(self, example: Example) -> Predictions:
        """Return what the metric gets of an example: for labels per position, decisions and its reduced logits."""
        raw = example.predictions
        if not self.position_dims:
            return raw
        decisions = raw.outputs >= 0 if self.task == "multilabel" else raw.outputs.argmax(1).astype(np.int8)
        reduced = {}
        if isinstance(self.metric, PositionReducing):
            reduced[self.metric.name] = self.reduced(example).numpy()
        return replace(raw, outputs=decisions, per_position=True, reduced=reduced)

    def reduced(self, example: Example) -> torch.Tensor:
        """Return what `reduce_positions` keeps of an example. Raises ContractError unless it has a row per sample."""
        raw = example.predictions
        metric: Any = self.metric
        outputs, labels = torch.from_numpy(raw.outputs.copy()), torch.from_numpy(raw.labels.copy())
        with self._contract_errors("reduce_positions", example, ""):
            kept: Any = metric.reduce_positions(outputs, labels)
        if not isinstance(kept, torch.Tensor) or kept.shape[:1] != (len(raw),):
            result = f"a tensor {tuple(kept.shape)}" if isinstance(kept, torch.Tensor) else describe(kept)
            raise ContractError(
                f"reduce_positions of {self.name} must return a tensor with a row for each of the {len(raw)} samples; "
                f"got {result}"
            )
        if not np.array_equal(outputs.numpy(), raw.outputs) or not np.array_equal(labels.numpy(), raw.labels):
            raise ContractError(
                f"reduce_positions of {self.name} changes outputs or labels in place; compute on a copy"
            )
        return kept

    def error(self, example: Example, problem: str) -> ContractError:
        """Return the error that names the metric, the example and the problem."""
        return ContractError(f"{self.name} on {example.description} {problem}")

    def call(self, method: str, function: Callable[[Predictions], Any], example: Example, advice: str = "") -> Any:
        """Call a method with an example. Raises ContractError if it raises, or changes an array in place."""
        predictions = self.predictions(example)
        columns: dict[str, Any] = {"labels": predictions.labels, "outputs": predictions.outputs}
        columns |= {"ids": predictions.ids, "groups": predictions.groups, **predictions.reduced}
        copies = {name: array.copy() for name, array in columns.items() if array is not None}
        with self._contract_errors(method, example, advice):
            result = function(predictions)
        for name, copied in copies.items():
            if not np.array_equal(columns[name], copied, equal_nan=copied.dtype.kind == "f"):
                raise ContractError(
                    f"{method} of {self.name} changes {name} in place, but other metrics get the same arrays; compute "
                    "on a copy"
                )
        return result

    @contextmanager
    def _contract_errors(self, method: str, example: Example, advice: str) -> Iterator[None]:
        """Turn any exception of the metric into a ContractError that names the method and ends with the advice."""
        try:
            yield
        except Exception as error:
            raise ContractError(
                f"{method} of {self.name} on {example.description} raises {type(error).__name__}: {error}{advice}"
            ) from error


def correct_predictions(task: Task, position_dims: int) -> Predictions:
    """Return predictions of a network that is right. For labels per position, the outputs are logits."""
    random = np.random.default_rng(0)
    positions = _POSITIONS[position_dims]
    labels: NDArray[Any]
    if task == "regression":
        labels = random.uniform(1, 5, (_SAMPLES, 2)).astype(np.float32)  # positive, for relative errors
        outputs = labels + random.normal(0, 0.05, labels.shape).astype(np.float32)  # for logarithms of errors
        return Predictions(labels=labels, outputs=outputs, classes=("x", "y"), ids=np.arange(_SAMPLES))
    if task == "multilabel":
        truth = random.random((_SAMPLES, _CLASSES, *positions)) < 0.4
        labels = truth.astype(np.int8 if positions else np.float32)
    else:
        labels = np.arange(_SAMPLES) % _CLASSES
        if positions:
            labels = random.integers(0, _CLASSES, (_SAMPLES, *positions), dtype=np.int8)
        truth = np.moveaxis(one_hot(labels.ravel(), _CLASSES).reshape(*labels.shape, _CLASSES), -1, 1)
    confidences = random.uniform(0.25, 1.5, (_SAMPLES, 1, *(1 for _ in positions)))
    outputs = (confidences * (8 * truth - 4 + random.normal(0, 0.5, truth.shape))).astype(np.float32)
    if positions:
        labels[random.random(labels.shape) < 0.2] = -1
    names = tuple(f"class {index}" for index in range(_CLASSES))
    return Predictions(labels=labels, outputs=outputs, classes=names, ids=np.arange(_SAMPLES))
