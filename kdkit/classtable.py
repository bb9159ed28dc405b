"""How a net does class by class: positives, thresholds, and every figure with its interval, from what it said."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from kdkit.errors import RunFolderError, did_you_mean, first_line
from kdkit.scores import BestF1, Interval, MacroAUPRC, MacroAUROC, Predictions, Score, Scored, Thresholds, true_classes
from kdkit.scores.decided import confusions, share
from kdkit.scores.resampling import Counts, Resampled, once
from kdkit.scores.score import defined, mean_of
from kdkit.stagefolder import StageFolder

FIGURES = ("precision", "recall", "f1", "auroc", "auprc")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRow:
    """One class. positives: by split, None where that is not known. threshold: a logit, None where there is none.

    figures: those of FIGURES that are defined on the test split, and intervals of the same names.
    """

    name: str
    positives: Mapping[str, int | None]
    threshold: float | None
    figures: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """What a finished run kept of one net: what it said of each split, and the training positives where known."""

    select: Predictions
    test: Predictions | None
    train: Mapping[str, int] | None


def class_table(
    reported: Reported, *, thresholds_by: Thresholds | None = None, resamples: int = 1000
) -> tuple[ClassRow, ...]:
    """Return a row per class, classes without positives too: what cannot be figured is missing from its figures.

    Thresholds are chosen on the selection split, for each class's best F1 if not told otherwise. Intervals hold 95 %.
    """
    select, test = reported.select, reported.test if reported.test is not None else reported.select
    thresholds = None if select.labels.ndim == 1 else (thresholds_by or BestF1()).choose(select)
    scores: dict[str, Score] = {name: _Decided(name, thresholds) for name in FIGURES[:3]}
    scores |= {"auroc": MacroAUROC(), "auprc": MacroAUPRC()}
    scored = {name: Interval(score, resamples=resamples).score(test) for name, score in scores.items()}
    counts = {
        "train": reported.train or {},
        "select": _positives(select),
        "test": _positives(reported.test) if reported.test is not None else {},
    }
    return tuple(
        ClassRow(
            name=name,
            positives={split: each.get(name) for split, each in counts.items()},
            threshold=None if thresholds is None else thresholds[column],
            figures={figure: each.by_class[name] for figure, each in scored.items() if name in each.by_class},
            intervals={
                figure: each.intervals_by_class[name] for figure, each in scored.items() if name in each.by_class
            },
        )
        for column, name in enumerate(test.classes)
    )


def read_reported(folder: Path, net: str) -> Reported:
    """Return what a run folder holds of a net. Raises RunFolderError where it is none, or does not know the net."""
    run = _run(folder)
    stages: dict[str, Path] = {}  # a net that was trained in several stages is as the last one left it
    for file in sorted(folder.glob("*/predictions-*-select.safetensors"), key=_number):
        stages[file.name.removeprefix("predictions-").removesuffix("-select.safetensors")] = file.parent
    if net not in stages:
        raise RunFolderError(f"{folder} holds no predictions of {net!r}; {did_you_mean(net, list(stages))}")
    stage = StageFolder(stages[net])
    there = (stage.path / f"predictions-{net}-test.safetensors").exists()
    return Reported(
        select=stage.load_predictions(net, "select"),
        test=stage.load_predictions(net, "test") if there else None,
        train=run.get("positives"),
    )


def nets_of_run(folder: Path) -> tuple[str, ...]:
    """Return the nets that a run scored. Raises RunFolderError where the folder holds no finished run."""
    try:
        return tuple(json.loads((folder / "scores.json").read_text())["scores"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{folder} holds no scores of a run ({first_line(error)}); give a finished run's"
        ) from error


@dataclass(frozen=True, slots=True)
class _Decided:
    """Precision, recall or F1 of each class, at thresholds that are given."""

    name: str
    thresholds: tuple[float, ...] | None

    def fit(self, select: Predictions) -> Self:
        return replace(self)

    def score(self, test: Predictions) -> Scored:
        values, by_class = self.resampled(test, once(test))
        return Scored(value=float(values[0]), by_class=defined(test, by_class[:, 0]))

    def resampled(self, test: Predictions, counts: Counts) -> Resampled:
        hits, said, true = confusions(test, self.thresholds, counts)
        part, whole = {"precision": (hits, said), "recall": (hits, true), "f1": (2 * hits, said + true)}[self.name]
        by_class = np.where(true > 0, share(part, whole), np.nan)
        return Resampled(mean_of(by_class), by_class)


def _number(file: Path) -> int:
    """Return the number of the stage that a file belongs to; 0 where its folder has none."""
    number = file.parent.name.split("-", 1)[0]
    return int(number) if number.isdecimal() else 0


def _positives(of: Predictions) -> dict[str, int]:
    counts: Sequence[int] = true_classes(of).sum(0).tolist()
    return dict(zip(of.classes, counts, strict=True))


def _run(folder: Path) -> dict[str, Any]:
    try:
        run: dict[str, Any] = json.loads((folder / "run.json").read_text())
        return run
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{folder} holds no run ({first_line(error)}); give the folder of a finished run"
        ) from error
