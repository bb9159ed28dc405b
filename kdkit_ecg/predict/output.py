"""Write predictions as a table to read, as lines of JSON, or as CSV."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from kdkit.utils.files import to_json
from kdkit.utils.printable import printable
from kdkit.utils.reprs import describe_count
from kdkit_ecg.predict.prediction import Prediction
from kdkit_ecg.predict.predictor import Predictor

DISCLAIMER = "for research only: not a medical device, and not for diagnosis or treatment"

_COLUMNS = ("record", "refused", "predicted", "windows", "combine", "seconds", "rate", "derived", "notes")


def json_lines(predictions: Iterable[Prediction]) -> Iterator[str]:
    """Yield a line of JSON for each prediction."""
    for prediction in predictions:
        yield to_json(prediction.as_dict())


def csv_lines(predictions: Iterable[Prediction], predictor: Predictor) -> Iterator[str]:
    """Yield the names of the columns, and a line for each prediction; three columns for a class, one for a number."""
    names = ("value",) if predictor.task == "regression" else ("probability", "threshold", "decision")
    of_classes = [f"{name} {field}" for name in predictor.classes for field in names]
    yield _csv_line([*_COLUMNS, *of_classes])
    for prediction in predictions:
        fields = prediction.as_dict()
        if prediction.reason is not None:
            yield _csv_line([fields["record"], fields["refused"], *[""] * (len(_COLUMNS) - 2 + len(of_classes))])
            continue
        numbers = [
            "" if value is None else int(value) if isinstance(value, bool) else value
            for by_class in fields["classes"].values()
            for value in by_class.values()
        ]
        predicted, derived, notes = (";".join(fields[key]) for key in ("predicted", "derived", "notes"))
        facts = [len(fields["windows"]), fields["combine"], fields["seconds"], fields["rate"]]
        yield _csv_line([fields["record"], "", predicted, *facts, derived, notes, *numbers])


def table_lines(predictions: Iterable[Prediction], predictor: Predictor) -> Iterator[str]:
    """Yield lines to read: every class of a single record, or each record's predicted classes; then a summary."""
    predictions = list(predictions)
    rows: list[tuple[str, ...]]
    accepted = [prediction for prediction in predictions if prediction.reason is None]
    if len(predictions) == len(accepted) == 1:
        yield f"{accepted[0].record}: {accepted[0].seconds:g} s at {accepted[0].rate:g} Hz\n"
        if predictor.task == "regression":
            rows = [("number", "value"), *_values(accepted[0])]
        else:
            rows = [("class", "probability", "threshold", "predicted")]
            for name, by_class in accepted[0].by_class().items():
                decided = "yes" if by_class["decision"] else ""
                rows.append((name, f"{by_class['probability']:.3f}", _threshold(by_class["threshold"]), decided))
        yield from _aligned(rows)
    else:
        predicts = "values" if predictor.task == "regression" else "predicted classes and their probabilities"
        rows = [("record", "seconds", predicts)]
        for prediction in predictions:
            if prediction.reason is not None:
                rows.append((prediction.record, "", f"REFUSED: {prediction.reason}"))
                continue
            if predictor.task == "regression":
                predicted = ", ".join(map(" ".join, _values(prediction)))
            else:
                probabilities = dict(zip(prediction.classes, prediction.probabilities.tolist(), strict=True))
                predicted = ", ".join(f"{name} {probabilities[name]:.3f}" for name in prediction.predicted)
            rows.append((prediction.record, f"{prediction.seconds:g}", predicted or "none"))
        yield from _aligned(rows)
        if predictor.thresholds:
            thresholds = zip(predictor.classes, predictor.thresholds, strict=True)
            yield "\nthresholds: " + ", ".join(f"{name} {_threshold(value)}" for name, value in thresholds)
    yield ""
    yield from summary_lines(predictions, predictor)


def summary_lines(predictions: Sequence[Prediction], predictor: Predictor) -> Iterator[str]:
    """Yield lines about all predictions: their number, records with several windows, and remarks with their counts."""
    accepted = [prediction for prediction in predictions if prediction.reason is None]
    records = describe_count(len(predictions), "record")
    yield f"{records}: {len(accepted)} predicted, {len(predictions) - len(accepted)} refused"
    several = sum(len(prediction.starts) > 1 for prediction in accepted)
    if several:
        how = {"mean": "the mean", "max": "the largest"}[predictor.combine]
        numbers = "values" if predictor.task == "regression" else "probabilities"
        yield f"{several} in several windows of {predictor.seconds:.4g} s: {how} of their {numbers}"
    remarks: Counter[str] = Counter()
    for prediction in accepted:
        if prediction.derived:
            remarks[f"computed from two other limb leads: {', '.join(prediction.derived)}"] += 1
        remarks.update(prediction.notes)
    for remark, count in remarks.items():
        yield f"{count} with the remark: {remark}"
    yield DISCLAIMER


def _values(prediction: Prediction) -> list[tuple[str, str]]:
    """Return the names and the values of a regression."""
    return [(name, f"{value:.4g}") for name, value in zip(prediction.classes, prediction.values.tolist(), strict=True)]


def _threshold(value: float | None) -> str:
    """Return a threshold; a class without one is never predicted, or is the one with the largest probability."""
    return "-" if value is None or value == float("inf") else f"{value:.3f}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yield rows as columns of equal width, except for the last one."""
    rows = [tuple(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _csv_line(cells: Sequence[object]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(
        [printable(cell) if isinstance(cell, str) else cell for cell in cells]
    )
    return buffer.getvalue()
