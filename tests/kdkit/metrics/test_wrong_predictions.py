"""Metrics refuse labels and outputs that do not fit each other, or are of the wrong kind."""

import numpy as np
import pytest
import torch

from kdkit import DataError, Predictions, RecipeError, registry
from kdkit.metrics import (
    F1,
    R2,
    Accuracy,
    BestF1,
    Brier,
    CalibrationError,
    MacroAUPRC,
    MeanIoU,
    SplitPredictions,
    YoudenJ,
    paired_bootstrap,
)
from kdkit.metrics.per_class import NetReport, class_table
from kdkit.metrics.thresholds import best_f1_threshold, best_j_threshold

CLASSES = ("a", "b", "c")
LABELS = np.arange(12) % 3
SEVERAL = np.eye(3)[LABELS]
LOGITS = np.random.default_rng(0).normal(size=(12, 3))
OF_NUMBERS = {"mae", "map", "mse", "nearest_neighbours", "pearson", "r2"}
OF_CLASSES = [name for name in registry("metrics") if name not in OF_NUMBERS | {"challenge_metric", "top_k_accuracy"}]
MULTILABEL = [name for name in OF_CLASSES if name not in ("accuracy", "perplexity")]


def predictions(labels, outputs, **options):
    return Predictions(labels=labels, outputs=outputs, classes=CLASSES, **options)


@pytest.mark.parametrize("name", OF_CLASSES)
def test_outputs_that_are_nan_have_no_metric(name):
    outputs = np.where(np.arange(12)[:, None] < 5, np.nan, LOGITS)
    split = predictions(LABELS, outputs)
    with pytest.raises(DataError, match=r"got NaN .*; did training diverge"):
        registry("metrics")[name]().fit(split).compute(split)


@pytest.mark.parametrize("outputs", [torch.zeros(12, 3), LOGITS.tolist()])
def test_predictions_are_arrays(outputs):
    with pytest.raises(DataError, match=r"must be numpy arrays; got outputs that are a \w+; convert them"):
        predictions(LABELS, outputs)


def test_classes_may_be_a_list():
    listed = Predictions(labels=LABELS, outputs=LOGITS, classes=[*CLASSES])
    pair = SplitPredictions(listed, listed), SplitPredictions(*[predictions(LABELS, LOGITS)] * 2)
    assert paired_bootstrap(Accuracy(), *pair, resamples=2).value == 0


def compute(name, labels, outputs):
    metric, data = registry("metrics")[name](), predictions(labels, outputs)
    return metric.fit(data).compute(data)


def test_every_metric_of_classes_takes_correct_predictions():
    for name in OF_CLASSES:
        compute(name, LABELS, LOGITS)
    for name in MULTILABEL:
        compute(name, SEVERAL, LOGITS)


@pytest.mark.parametrize("name", MULTILABEL)
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int8])
def test_whole_numbers_as_outputs_are_scored_as_floats_are(name, dtype):
    outputs = np.where(LOGITS > 0, 100, -128 if dtype == np.int8 else 0).astype(dtype)
    assert compute(name, SEVERAL, outputs) == compute(name, SEVERAL, outputs.astype(np.float64))


@pytest.mark.parametrize("name", registry("metrics"))
@pytest.mark.parametrize("labels", [LABELS, SEVERAL], ids=["multiclass", "multilabel"])
def test_more_labels_than_outputs_are_refused(name, labels):
    with pytest.raises(DataError, match="a label and an output for each sample; got 12 labels, 11 outputs"):
        compute(name, labels, LOGITS[:11])


@pytest.mark.parametrize("name", OF_CLASSES)
@pytest.mark.parametrize("outputs", [LOGITS[:, :1], LOGITS[:, :2], LOGITS[:, 0], np.ones((12, 4)), np.ones((12, 3, 2))])
def test_outputs_that_are_not_one_per_class_are_refused(name, outputs):
    with pytest.raises(DataError, match=r"outputs \(samples, classes\) for the 3 classes; got \(12"):
        compute(name, LABELS, outputs)


@pytest.mark.parametrize("name", MULTILABEL)
@pytest.mark.parametrize("labels", [SEVERAL[:, :1], SEVERAL[:, :2], np.ones((12, 4)), np.ones((12, 3, 1))])
def test_labels_that_are_not_one_per_class_are_refused(name, labels):
    with pytest.raises(DataError, match=r"or 0 and 1 \(samples, classes\) for the 3 classes; got \(12"):
        compute(name, labels, LOGITS)


@pytest.mark.parametrize("name", OF_CLASSES)
@pytest.mark.parametrize("labels", [LABELS - 1, LABELS + 1, LABELS + 0.5, np.where(LABELS, LABELS, np.nan)])
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
def test_labels_that_are_no_class_indices_are_refused(name, labels):
    with pytest.raises(DataError, match="class indices from 0 to 2; got"):
        compute(name, labels, LOGITS)


@pytest.mark.parametrize("name", MULTILABEL)
@pytest.mark.parametrize("labels", [2 * SEVERAL - 1, 3 * SEVERAL, LOGITS])
def test_labels_beyond_0_and_1_are_refused(name, labels):
    with pytest.raises(DataError, match="must be 0 and 1, or NaN if unknown; got"):
        compute(name, labels, LOGITS)


@pytest.mark.parametrize(
    ("labels", "outputs", "name"),
    [
        (np.array(CLASSES)[LABELS], LOGITS, "labels of dtype <U1"),
        (SEVERAL.astype(object), LOGITS, "labels of dtype object"),
        (LABELS, LOGITS.astype(str), "outputs of dtype <U"),
        (LABELS, LOGITS + 1j, "outputs of dtype complex128"),
    ],
)
def test_labels_and_outputs_that_are_no_numbers_are_refused(labels, outputs, name):
    with pytest.raises(DataError, match=f"arrays of numbers or bool; got {name}"):
        predictions(labels, outputs)


def test_ids_and_groups_are_one_per_sample():
    with pytest.raises(DataError, match="got 12 labels, 12 outputs, 1 ids, 12 groups"):
        predictions(LABELS, LOGITS, ids=np.arange(1), groups=np.arange(12))


def test_accuracy_is_of_one_class_per_sample():
    with pytest.raises(DataError, match=r"labels \(samples,\); got \(12, 3\); use MacroF1 or MicroF1"):
        Accuracy().compute(predictions(SEVERAL, LOGITS))


@pytest.mark.parametrize("metric", [Accuracy(), F1(), MeanIoU()])
@pytest.mark.parametrize("dtype", [np.int64, np.bool_])
def test_decisions_per_position_have_the_shape_of_the_labels(metric, dtype):
    labels = np.zeros((2, 3, 4) if dtype == np.int64 else (2, 3, 3, 4), np.int64)
    with pytest.raises(DataError, match=r"a decision for each label; got labels .* and outputs"):
        metric.compute(predictions(labels, labels[..., :1].astype(dtype), per_position=True))


@pytest.mark.parametrize("thresholds", [(0.5,), (0.5, 0.5), (0.5,) * 4])
def test_thresholds_are_one_per_class(thresholds):
    with pytest.raises(RecipeError, match=rf"one threshold per class; got {len(thresholds)} for 3 classes"):
        F1(thresholds=thresholds).compute(predictions(SEVERAL, LOGITS))


@pytest.mark.parametrize("rule", [BestF1(), YoudenJ()])
def test_thresholds_are_not_chosen_from_predictions_that_do_not_fit(rule):
    with pytest.raises(DataError, match="thresholds are for several labels per sample"):
        rule.choose(predictions(LABELS, LOGITS))
    with pytest.raises(DataError, match=r"outputs \(samples, classes\)"):
        rule.choose(predictions(SEVERAL, LOGITS[:, :2]))
    with pytest.raises(DataError, match="0 and 1"):
        rule.choose(predictions(2 * SEVERAL, LOGITS))


@pytest.mark.parametrize("threshold", [best_f1_threshold, best_j_threshold])
def test_a_threshold_is_not_chosen_from_labels_and_outputs_of_different_lengths(threshold):
    for labels, outputs in ((SEVERAL[:, 0], LOGITS[:9, 0]), (SEVERAL[:9, 0], LOGITS[:, 0]), (SEVERAL, LOGITS)):
        with pytest.raises(DataError, match=r"chosen for one class, from labels and outputs \(samples,\); got"):
            threshold(labels, outputs)


@pytest.mark.parametrize("metric", [Brier(), CalibrationError(), MacroAUPRC(), R2()])
def test_a_resample_of_predictions_that_do_not_fit_is_refused_too(metric):
    run = SplitPredictions(*[predictions(SEVERAL, LOGITS[:, :2])] * 2)
    with pytest.raises(DataError):
        paired_bootstrap(metric, run, run, resamples=10)


def test_a_table_of_classes_needs_outputs_for_all_of_them():
    with pytest.raises(DataError, match=r"outputs \(samples, classes\)"):
        class_table(NetReport(validation=predictions(SEVERAL, LOGITS[:, :2]), test=None, train=None), resamples=10)


def test_nets_are_compared_on_unknown_labels():
    labels = SEVERAL.copy()
    labels[0, 0] = np.nan
    run = SplitPredictions(*[predictions(labels, LOGITS)] * 2)
    copied = SplitPredictions(*[predictions(labels.copy(), LOGITS)] * 2)
    assert paired_bootstrap(MacroAUPRC(), run, copied, resamples=10).value == 0
