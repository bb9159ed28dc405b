"""The shelf of scores: how well a net does, with thresholds fitted on one split and figures reported on another."""

from kdkit.metrics.base import Predictions, Score, Scored, better, lower_is_better, true_classes
from kdkit.metrics.bootstrap import Interval, Resampled, bare
from kdkit.metrics.calibration import Brier, CalibrationError
from kdkit.metrics.classification import F1, Accuracy, MacroF1, MicroF1
from kdkit.metrics.defaults import default_scores
from kdkit.metrics.paired import Difference, Said, paired, paired_runs
from kdkit.metrics.ranking import MacroAUPRC, MacroAUROC
from kdkit.metrics.regression import R2
from kdkit.metrics.thresholds import BestF1, FixedThresholds, Thresholds, YoudenJ

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
