"""Agreement, calibration and confusion of predictions, against other programs and small cases by hand."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from sklearn.metrics import confusion_matrix

from kdkit.metrics import (
    MRR,
    Accuracy,
    CalibrationError,
    MacroF1,
    MeanAveragePrecision,
    Predictions,
    SplitPredictions,
    TopKAccuracy,
)
from kdkit.report.analysis import agreement, confusion, kind_of, reliability, same_metric
from kdkit.report.formats import metric_title

CLASSES = ("a", "b", "c")


def multiclass(seed=0, rows=50):
    random = np.random.default_rng(seed)
    labels = np.random.default_rng(9).integers(0, 3, rows)
    outputs = random.standard_normal((rows, 3)) + 2 * np.eye(3)[labels]
    return Predictions(labels=labels, outputs=outputs, classes=CLASSES)


def multilabel(outputs, labels):
    return Predictions(labels=np.array(labels, float), outputs=np.array(outputs, float), classes=CLASSES)


def as_run(predictions):
    return SplitPredictions(predictions, predictions)


def test_kinds_of_labels():
    positions = Predictions(
        labels=np.zeros((2, 4), int), outputs=np.zeros((2, 4), int), classes=CLASSES, per_position=True
    )
    numbers = Predictions(labels=np.full((2, 3), 0.4), outputs=np.zeros((2, 3)), classes=CLASSES)
    assert kind_of(multiclass()) == "multiclass"
    assert kind_of(multilabel([[1, 2, 3]], [[0, 1, np.nan]])) == "multilabel"
    assert kind_of(positions) == "positions"
    assert kind_of(numbers) == "regression"


def test_agreement_of_one_class_per_sample():
    teacher, student = multiclass(0), multiclass(1)
    result = agreement(as_run(teacher), as_run(student))
    decisions = teacher.outputs.argmax(1), student.outputs.argmax(1)
    right = decisions[0] == teacher.labels, decisions[1] == teacher.labels
    assert result.equal == pytest.approx((decisions[0] == decisions[1]).mean())
    assert result.first_only == pytest.approx((right[0] & ~right[1]).mean())
    assert result.both + result.first_only + result.second_only + result.neither == pytest.approx(1)
    divergence = entropy(softmax(teacher.outputs, 1), softmax(student.outputs, 1), axis=1).mean()
    assert result.divergence == pytest.approx(divergence)
    centred = [log_softmax(side.outputs, 1) for side in (teacher, student)]
    centred = [side - side.mean(1, keepdims=True) for side in centred]
    assert result.correlation == pytest.approx(np.corrcoef(centred[0].ravel(), centred[1].ravel())[0, 1])


def test_agreement_does_not_depend_on_how_many_outputs_are_compared_at_a_time(monkeypatch):
    classes, labels = as_run(multiclass(0)), as_run(multilabel(multiclass(0).outputs, np.eye(3)[multiclass().labels]))
    others = as_run(multiclass(1)), as_run(replace(labels.test, outputs=multiclass(1).outputs))
    whole = [agreement(*pair) for pair in zip((classes, labels), others, strict=True)]
    monkeypatch.setattr("kdkit.report.analysis._BLOCK", 7)
    for pair, expected in zip(zip((classes, labels), others, strict=True), whole, strict=True):
        result = agreement(*pair)
        assert (result.divergence, result.correlation) == pytest.approx((expected.divergence, expected.correlation))


def test_masked_classes_do_not_change_the_correlation_of_the_others():
    pair = multiclass(0), multiclass(1)
    masked = [replace(side, outputs=np.concatenate([side.outputs, np.full((50, 1), -8.5e37)], 1)) for side in pair]
    masked = [as_run(replace(side, classes=(*CLASSES, "d"))) for side in masked]
    assert agreement(*masked).correlation == pytest.approx(agreement(*map(as_run, pair)).correlation)


def test_agreement_of_labels_leaves_out_unknown_ones():
    first = multilabel([[5, -5, 5], [-5, 5, -5]], [[1, 0, np.nan], [0, 1, 0]])
    second = multilabel([[5, -5, -5], [-5, -5, -5]], [[1, 0, np.nan], [0, 1, 0]])
    result = agreement(as_run(first), as_run(second))
    # class b of the second net: equal outputs, so that its threshold predicts both samples
    assert result.both == pytest.approx(4 / 5)
    assert result.first_only == pytest.approx(1 / 5)


def test_a_net_agrees_with_itself():
    result = agreement(as_run(multiclass()), as_run(multiclass()))
    assert (result.equal, result.divergence, result.first_only) == (1, 0, 0)
    assert result.correlation == pytest.approx(1)


def test_nets_with_other_samples_are_not_compared():
    assert agreement(as_run(multiclass(rows=50)), as_run(multiclass(rows=40))) is None


def test_huge_outputs_do_not_overflow():
    masked = multiclass()
    masked.outputs[0, (masked.labels[0] + 1) % 3] = -1e38
    result = agreement(as_run(masked), as_run(multiclass()))
    assert np.isfinite([result.divergence, result.correlation]).all()


def test_reliability_counts_every_sample():
    predictions = multiclass(rows=200)
    error, bins = reliability(predictions)
    assert sum(count for *_, count in bins) == 200
    assert error == CalibrationError().compute(predictions).value
    right = sum(share * count for _, share, count in bins)
    assert right == pytest.approx(200 * Accuracy().compute(predictions).value)


def test_confusion_of_classes_is_that_of_scikit_learn():
    predictions = multiclass()
    expected = confusion_matrix(predictions.labels, predictions.outputs.argmax(1))
    np.testing.assert_array_equal(confusion(as_run(predictions)).toarray(), expected)


def test_confusion_of_labels_counts_what_was_predicted_instead():
    # thresholds separate a from the rest; sample 1 misses b, and c is predicted there instead
    validation = multilabel([[1, -1, -1], [-1, 1, -1], [-1, -1, 1]], np.eye(3))
    test = multilabel([[1, -1, -1], [-1, -1, 1], [-1, -1, 1]], np.eye(3))
    matrix = confusion(SplitPredictions(validation, test)).toarray()
    np.testing.assert_array_equal(matrix, [[0, 0, 0], [0, 1, 1], [0, 0, 0]])


def test_confusion_of_a_vocabulary_takes_no_memory_for_pairs_of_classes():
    names, labels = tuple(map(str, range(100_000))), np.array([[7, 99_999, -1]])
    predictions = Predictions(labels=labels, outputs=np.array([[8, 99_999, 1]]), classes=names, per_position=True)
    matrix = confusion(as_run(predictions))
    assert (matrix.nnz, matrix[7, 8], matrix[99_999, 99_999]) == (2, 1, 1)


def test_confusion_per_position_leaves_out_positions_without_a_label():
    labels, decisions = np.array([[0, 1, -1], [2, 2, -1]]), np.array([[0, 2, 1], [2, 2, 0]])
    predictions = Predictions(labels=labels, outputs=decisions, classes=CLASSES, per_position=True)
    np.testing.assert_array_equal(confusion(as_run(predictions)).toarray(), [[1, 0, 0], [0, 0, 1], [0, 0, 2]])


def test_a_metric_is_found_only_if_it_gives_the_stored_value():
    run = as_run(multiclass())
    stored = MacroF1().fit(run.validation).compute(run.test)
    assert same_metric("macro_f1", stored, run) == MacroF1()
    assert same_metric("accuracy", stored, run) is None
    assert same_metric("user_defined", stored, run) is None
    top_2 = TopKAccuracy(2).compute(run.test)
    assert same_metric("top_2_accuracy", top_2, run) == TopKAccuracy(2)
    assert same_metric("top_1_accuracy", top_2, run) is None
    assert same_metric("mrr_2", MRR(2).compute(run.test), run) == MRR(2)
    assert same_metric("top_9_accuracy", top_2, run) is None  # as many as the classes, or more


@pytest.mark.parametrize("overlaps", [None, (0.5,)])
def test_the_mean_average_precision_of_boxes_is_found(overlaps):
    labels = np.tile([2.0, 3.0, 9.0, 9.0, 1.0], (4, 1, 1))
    outputs = np.concatenate([labels, np.ones((4, 1, 1))], 2)
    outputs[0, 0, 0] = 4  # an overlap of 0.71
    metric = MeanAveragePrecision() if overlaps is None else MeanAveragePrecision(overlaps)
    run = as_run(Predictions(labels=labels, outputs=outputs, classes=("car",)))
    assert same_metric(metric.name, metric.compute(run.test), run) == metric
    assert metric_title(metric.name).startswith("mAP")


@pytest.mark.parametrize(
    ("name", "title"),
    [("force_mae", "Force MAE"), ("relative_l2", "Relative L2"), ("mase_12", "MASE 12"), ("smape", "sMAPE")],
)
def test_the_titles_of_common_errors_have_their_capitals(name, title):
    assert metric_title(name) == title
