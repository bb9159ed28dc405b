"""Metrics, with thresholds that are fitted on one split and applied to another."""

from kdkit.metrics.base import (
    Metric,
    MetricResult,
    NetworkReducing,
    PositionReducing,
    Predictions,
    is_better,
    lower_is_better,
    true_classes,
)
from kdkit.metrics.bootstrap import BootstrapInterval, without_interval
from kdkit.metrics.calibration import Brier, CalibrationError
from kdkit.metrics.classification import F1, Accuracy, MacroF1, MeanIoU, MicroF1
from kdkit.metrics.comparison import Comparison, compare_over_seeds
from kdkit.metrics.defaults import default_metrics
from kdkit.metrics.detection import MeanAveragePrecision
from kdkit.metrics.likelihood import CrossEntropy, Perplexity
from kdkit.metrics.neighbours import NearestNeighbours
from kdkit.metrics.paired import Difference, SplitPredictions, paired_bootstrap, paired_t_interval
from kdkit.metrics.ranking import MacroAUPRC, MacroAUROC
from kdkit.metrics.ranks import MRR, NDCG, TopKAccuracy
from kdkit.metrics.regression import MAE, MSE, R2, Pearson
from kdkit.metrics.resampling import Resampled
from kdkit.metrics.thresholds import BestF1, FixedThresholds, MinimumSensitivity, Thresholds, YoudenJ

__all__ = [
    "F1",
    "MAE",
    "MRR",
    "MSE",
    "NDCG",
    "R2",
    "Accuracy",
    "BestF1",
    "BootstrapInterval",
    "Brier",
    "CalibrationError",
    "Comparison",
    "CrossEntropy",
    "Difference",
    "FixedThresholds",
    "MacroAUPRC",
    "MacroAUROC",
    "MacroF1",
    "MeanAveragePrecision",
    "MeanIoU",
    "Metric",
    "MetricResult",
    "MicroF1",
    "MinimumSensitivity",
    "NearestNeighbours",
    "NetworkReducing",
    "Pearson",
    "Perplexity",
    "PositionReducing",
    "Predictions",
    "Resampled",
    "SplitPredictions",
    "Thresholds",
    "TopKAccuracy",
    "YoudenJ",
    "compare_over_seeds",
    "default_metrics",
    "is_better",
    "lower_is_better",
    "paired_bootstrap",
    "paired_t_interval",
    "true_classes",
    "without_interval",
]
