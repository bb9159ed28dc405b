"""The results of a sweep: metrics by cell, the best cell, and whether it can be distinguished from the others."""

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from kdkit.metrics.comparison import Comparison
from kdkit.utils.console import format_number
from kdkit.utils.files import to_json, write_output
from kdkit.utils.paths import user_path
from kdkit.utils.reprs import describe_count, describe_names

LEVEL = 0.95  # of all comparisons together
_SHOWN = 20  # cells in the repr
_RELATIONS = {"better": "better than", "worse": "worse than", "not distinguishable": "not distinguishable from"}


Repetition = int | tuple[Any, ...]
"""The seed of a run; if a sweep averages over options, their values and the seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One combination of the options that are compared.

    label: the options with several values in the sweep, such as "temperature=2, width=8". trials: the name of the trial
    of each repetition. A repetition is a seed; if the sweep averages over options, it is their values and a seed.
    reference: the label of the cell with which this one is compared; "" if there is none.
    """

    options: Mapping[str, Any]
    label: str
    trials: Mapping[Repetition, str]
    reference: str = ""


class Spread(NamedTuple):
    """A metric over runs: its mean, and its sample standard deviation, NaN for a single run."""

    mean: float
    sd: float

    def __str__(self) -> str:
        return format_number(self.mean) + ("" if math.isnan(self.sd) else f" ± {format_number(self.sd)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResults:
    """The finished runs of one combination of options.

    metrics: of the net on the reported split, by metric and repetition. A repetition is a seed, or if the sweep
    averages over options, a tuple of their values and the seed. validation: the compared metric on the validation
    split, by repetition. comparison: of the best cell with this one; if the sweep has a reference, of this cell with
    the one named `reference`. None for the best cell and the reference, and if one of the two cells has no runs.
    alone: like `metrics`, of the student without teachers, if the runs have such a baseline. distillation: the
    comparison of the net with this baseline; None if there is none.
    """

    label: str
    options: Mapping[str, Any]
    metrics: Mapping[str, Mapping[Repetition, float]]
    validation: Mapping[Repetition, float]
    comparison: Comparison | None = None
    reference: str = ""
    alone: Mapping[str, Mapping[Repetition, float]] = field(default_factory=dict)
    distillation: Comparison | None = None

    @property
    def repetitions(self) -> tuple[Repetition, ...]:
        """The repetitions with a finished run."""
        return tuple(self.validation)

    def spread(self, metric: str) -> Spread:
        """Return the mean and standard deviation of a metric over repetitions; NaN if there is no finished run."""
        return spread(self.metrics.get(metric, {}).values())


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResults:
    """The table of a sweep.

    metric: the name of the compared metric. lower_is_better: as for the metric.
    net: the name of the compared net; "" if runs have nets of other names.
    best: the index of the cell with its best mean on the validation split; None if it is undefined there in all cells.
    reported_on: the split of the metrics, "test", or "validation" if the data has no test split.
    level: the confidence level of each interval, at which all of them together have 95 % (Bonferroni).
    distillation_level: likewise, of the intervals of students against their baselines.
    reference: the options of the reference, such as "method=kd"; "" if the best cell is compared with the others.
    left_out: the reason for each finished run that cannot be read. without_net: the labels of cells whose recipe has no
    such net. average_over: the options whose values are averaged over, in addition to the seeds.
    """

    cells: tuple[CellResults, ...]
    metric: str
    best: int | None
    reported_on: str
    level: float
    net: str = ""
    reference: str = ""
    distillation_level: float = LEVEL
    lower_is_better: bool = False
    left_out: tuple[str, ...] = ()
    without_net: tuple[str, ...] = ()
    average_over: tuple[str, ...] = ()

    def __repr__(self) -> str:
        lines = [
            f"\n  {cell.label}: {cell.spread(self.metric)} over {describe_count(len(cell.repetitions), self.unit)}"
            f"{', best on validation' * (index == self.best)}"
            for index, cell in enumerate(self.cells[:_SHOWN])
        ]
        if len(self.cells) > _SHOWN:
            lines.append(f"\n  and {len(self.cells) - _SHOWN} more")
        return f"SweepResults, {self.metric}{self.of_net} on {self.reported_on}:{''.join(lines)}"

    @property
    def of_net(self) -> str:
        """The compared net, such as " of student", as a part of a title; "" if runs have nets of other names."""
        return f" of {self.net}" if self.net else ""

    @property
    def unit(self) -> str:
        """The word for a repetition of a cell: "seed", or "run" if they differ in other options too."""
        return "run" if self.average_over else "seed"

    def verdicts(self) -> list[str]:
        """Return a sentence for the best cell, for each comparison, and for each student with a baseline."""
        best = "" if self.best is None else self.cells[self.best].label
        comparisons = [
            (*((cell.label, cell.reference) if self.reference else (best, cell.label)), cell.comparison)
            for cell in self.cells
        ]
        comparisons += [(cell.label, "the same student alone", cell.distillation) for cell in self.cells]
        sentences = [f"{best} is the best on the validation split"] if best else []
        for first, second, comparison in comparisons:
            if comparison is not None:
                scope = "" if comparison.seeds is not None else "in these runs, "
                relation, figures = _RELATIONS[comparison.verdict], self._figures(comparison)
                sentences.append(f"{scope}{first} is {relation} {second}: {self.metric} {figures}")
        return sentences

    def notes(self) -> list[str]:
        """Return the reasons why comparisons are missing, and the assumptions of the others."""
        of_cells = [cell.comparison for cell in self.cells if cell.comparison is not None]
        of_students = [cell.distillation for cell in self.cells if cell.distillation is not None]
        comparisons = [*of_cells, *of_students]
        notes = [
            comparison.note
            for comparison in comparisons
            if comparison.note and (comparison.seeds is not None or comparison.samples is None)
        ]
        finished = [cell for cell in self.cells if cell.repetitions]
        repetitions = [cell.repetitions for cell in finished]
        if comparisons and min(map(len, repetitions)) == 1:
            notes.append("one seed cannot tell which options are better, or whether distillation helps: --seeds 5")
        if of_students:
            alone = [cell.label for cell in finished if cell.distillation is None]
            notes += [f"{label} has no baseline, because it has no distilled student" for label in alone]
        if self.best is None and len(self.cells) > 1:
            advice = "; choose another metric with --metric, or compare with --reference OPTION=VALUE"
            notes.append(
                f"{self.metric} is undefined on the validation split, so no combination is the best"
                f"{'' if self.reference else advice}"
            )
        undefined = [cell.label for cell in finished if math.isnan(spread(cell.validation.values()).mean)]
        if self.best is not None and undefined:
            names = describe_names(map(repr, undefined))
            notes.append(
                f"{self.metric} is undefined on the validation split in a run of {names}, so the best is chosen among "
                "the others"
            )
        notes += [f"{label} has no net {self.net!r}" for label in self.without_net]
        labels = {"", *(cell.label for cell in finished)}
        missing = [cell.reference for cell in finished if cell.reference not in labels]
        notes += [f"{reference} has no results to compare with" for reference in missing]
        if len({*repetitions}) > 1:
            notes.append(f"means are over different {self.unit}s, because some runs are missing; run the sweep again")
        if max(len(of_cells), len(of_students)) > 1:
            notes.append(f"all intervals of a table together hold with {100 * LEVEL:.0f} % confidence (Bonferroni)")
        has_chosen = bool(of_cells) and not self.reference
        if has_chosen and self.reported_on == "validation":
            # On the samples used to choose it, the best looks better than it is.
            notes.append("there is no test split, so the best was chosen and compared on the same samples")
        elif has_chosen and self.average_over and any(comparison.includes_samples for comparison in of_cells):
            notes.append("test samples of one run may be validation samples of another, on which the best was chosen")
        return [*dict.fromkeys(notes)]

    def as_json(self) -> str:
        """Return everything as JSON, with null for numbers that are undefined."""
        cells = [
            {
                "options": {
                    name: value if isinstance(value, bool | int | float | str | None) else str(value)
                    for name, value in cell.options.items()
                },
                f"{self.unit}s": [self._repetition_name(key) for key in cell.repetitions],
                "metrics": self._metrics_as_dict(cell.metrics),
                "metrics_alone": self._metrics_as_dict(cell.alone),
                "validation": {
                    self.metric: {str(self._repetition_name(key)): value for key, value in cell.validation.items()}
                },
                "best_minus_this": None if self.reference else _as_dict(cell.comparison),
                "this_minus_reference": _as_dict(cell.comparison) if self.reference else None,
                "this_minus_alone": _as_dict(cell.distillation),
            }
            for cell in self.cells
        ]
        return to_json(
            {
                "metric": self.metric,
                "lower_is_better": self.lower_is_better,
                "net": self.net or None,
                "reported_on": self.reported_on,
                "best": None if self.best is None else cells[self.best]["options"],
                "reference": self.reference or None,
                "average_over": self.average_over,
                "level": self.level,
                "distillation_level": self.distillation_level,
                "cells": cells,
                "left_out": self.left_out,
                "notes": self.notes(),
            },
            indent=2,
        )

    def as_csv(self) -> str:
        """Return a row for each finished run: its options, its seed, and its metrics."""
        options = list(dict.fromkeys(name for cell in self.cells for name in cell.options))
        metrics = list(dict.fromkeys(name for cell in self.cells for name in cell.metrics))
        alone = list(dict.fromkeys(name for cell in self.cells for name in cell.alone))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = [*options, *self.average_over, "seed", f"validation_{self.metric}"]
        writer.writerow([*names, *metrics, *(f"alone_{name}" for name in alone)])
        for cell in self.cells:
            for key in cell.repetitions:
                repetition = (key,) if isinstance(key, int) else key
                values = [cell.metrics.get(name, {}).get(key, "") for name in metrics]
                values += [cell.alone.get(name, {}).get(key, "") for name in alone]
                writer.writerow([*cell.options.values(), *repetition, cell.validation[key], *values])
        return text.getvalue()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write results.json and results.csv to a folder. Raises KdkitError if they cannot be written."""
        folder = user_path(folder)
        write_output(folder / "results.json", self.as_json(), option="--out FOLDER")
        write_output(folder / "results.csv", self.as_csv(), option="--out FOLDER")

    def _figures(self, comparison: Comparison) -> str:
        """Return the differences with their intervals, and the note."""
        parts = []
        for unit, difference in ((f"{self.unit}s", comparison.seeds), ("samples", comparison.samples)):
            if difference is not None:
                low, high = difference.interval
                parts.append(f"{difference.value:+.4f} ({low:+.4f} to {high:+.4f}) over {difference.pairs} {unit}")
        if len(parts) == 2 and comparison.total is not None:
            low, high = comparison.total.interval
            parts.append(f"({low:+.4f} to {high:+.4f}) over both")
        return "; ".join(filter(None, [", ".join(parts), comparison.note]))

    def _metrics_as_dict(self, metrics: Mapping[str, Mapping[Repetition, float]]) -> dict[str, Any]:
        """Return metrics by repetition as values for JSON."""
        return {
            name: {
                **spread(values.values())._asdict(),
                f"by_{self.unit}": {str(self._repetition_name(key)): value for key, value in values.items()},
            }
            for name, values in metrics.items()
        }

    def _repetition_name(self, key: Repetition) -> int | str:
        """Return the seed, or options and seed such as "fold=0,seed=1"."""
        if isinstance(key, int):
            return key
        return ",".join(f"{name}={value}" for name, value in zip((*self.average_over, "seed"), key, strict=True))


def spread(values: Iterable[float]) -> Spread:
    """Return the mean and the standard deviation of values; NaN if there are too few, or one is NaN."""
    numbers = np.array(list(values), dtype=np.float64)  # statistics.stdev raises for a NaN
    mean = float(numbers.mean()) if len(numbers) else math.nan
    # Minus the first, so that equal values, such as those of a frozen teacher, have no deviation from rounding.
    return Spread(mean, float((numbers - numbers[0]).std(ddof=1)) if len(numbers) > 1 else math.nan)


def _as_dict(comparison: Comparison | None) -> dict[str, Any] | None:
    """Return a comparison as values for JSON."""
    if comparison is None:
        return None
    differences = {
        name: None if value is None else {"value": value.value, "interval": value.interval, "pairs": value.pairs}
        for name, value in (("seeds", comparison.seeds), ("samples", comparison.samples))
    }
    interval = None if comparison.total is None else comparison.total.interval
    return {"verdict": comparison.verdict, **differences, "interval": interval, "note": comparison.note}
