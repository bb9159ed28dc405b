"""The shelf of scores: how well a net does, with thresholds fitted on one split and figures reported on another."""

from kdkit.scores.calibration import Brier, CalibrationError
from kdkit.scores.decided import F1, Accuracy, MacroF1, MicroF1
from kdkit.scores.defaults import default_scores
from kdkit.scores.difference import Difference, Said, paired, paired_runs
from kdkit.scores.interval import Interval, bare
from kdkit.scores.ranked import MacroAUPRC, MacroAUROC
from kdkit.scores.regression import R2
from kdkit.scores.resampling import Resampled
from kdkit.scores.score import Predictions, Score, Scored, better, lower_is_better, true_classes
from kdkit.scores.thresholds import BestF1, FixedThresholds, Thresholds, YoudenJ

__all__ = [
    "F1",
    "R2",
    "Accuracy",
    "BestF1",
    "Brier",
    "CalibrationError",
    "Difference",
    "FixedThresholds",
    "Interval",
    "MacroAUPRC",
    "MacroAUROC",
    "MacroF1",
    "MicroF1",
    "Predictions",
    "Resampled",
    "Said",
    "Score",
    "Scored",
    "Thresholds",
    "YoudenJ",
    "bare",
    "better",
    "default_scores",
    "lower_is_better",
    "paired",
    "paired_runs",
    "true_classes",
]
