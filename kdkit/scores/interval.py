"""How far a figure may be trusted: a score with the interval that other samples of the same kind would leave it in."""

from dataclasses import KW_ONLY, dataclass, replace
from typing import Self

import numpy as np

from kdkit.errors import RecipeError
from kdkit.scores.resampling import bounds, draw, require_bootstrap, resample
from kdkit.scores.score import Predictions, Score, Scored, lower_is_better


@dataclass(frozen=True, slots=True)
class Interval:
    """The same score, and a bootstrap interval of it: Interval(MacroAUPRC()).

    The percentile method (Efron & Tibshirani 1993, chapter 13): samples of the split are drawn anew with replacement,
    whole patients where Predictions has groups. Thresholds are not drawn anew, and nothing is trained again: the
    interval tells of the split that was reported on, not of other seeds.
    level: the share of resamples within. seed: of the draws, the same for every net, so that nets are compared alike.
    """

    of: Score
    _: KW_ONLY
    resamples: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.of, type) or not isinstance(self.of, Score):
            raise RecipeError(f"Interval takes a score, such as Interval(MacroAUPRC()); got {self.of!r}")
        if isinstance(self.of, Interval):
            raise RecipeError("an interval has no interval of its own; give Interval the score itself")
        require_bootstrap(self.resamples, self.level)

    @property
    def name(self) -> str:
        """The name of the score."""
        return self.of.name

    @property
    def lower_is_better(self) -> bool:
        """As the score has it."""
        return lower_is_better(self.of)

    def fit(self, select: Predictions) -> Self:
        """Choose what the score has to choose."""
        return replace(self, of=self.of.fit(select))

    def score(self, test: Predictions) -> Scored:
        """Return what the score says, with intervals; a resample in which it is undefined is left out."""
        plain = self.of.score(test)
        drawn = [resample(self.of, test, counts) for counts in draw(test, self.resamples, self.seed)]
        values = np.concatenate([each.values for each in drawn])
        figures = np.concatenate([each.by_class for each in drawn], axis=1)
        by_class = {
            name: bounds(row, self.level)
            for name, row in zip(test.classes, figures, strict=True)
            if name in plain.by_class
        }
        units = "samples" if test.groups is None else "groups (patients)"
        notes = [plain.note, f"intervals: {self.level:.0%}, percentiles of {self.resamples} resamples of {units}"]
        return replace(
            plain,
            interval=bounds(values, self.level),
            intervals_by_class=by_class,
            note="; ".join(filter(None, notes)),
        )


def bare(score: Score) -> Score:
    """Return the score without its interval, which takes a thousand times as long."""
    return score.of if isinstance(score, Interval) else score
