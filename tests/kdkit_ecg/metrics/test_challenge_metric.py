"""The challenge metric has its defining values, and its thresholds raise it."""

import numpy as np
import pytest

from kdkit import DataError, Predictions, RecipeError
from kdkit_ecg.labels import NORMAL, scored_classes
from kdkit_ecg.metrics import BestChallengeMetric, ChallengeMetric, challenge_metric, official_figures

CLASSES = scored_classes(2020)
NORMAL_COLUMN = CLASSES.codes.index(NORMAL)


def one_hot(columns):
    return np.eye(len(CLASSES.names))[columns]


def predictions(seed=0, records=400, shift=-1.5):
    """Return outputs that are correlated with the labels; shift: added to all logits."""
    rng = np.random.default_rng(seed)
    labels = rng.random((records, len(CLASSES.names))) < np.linspace(0.02, 0.3, len(CLASSES.names))
    outputs = shift + 2 * labels + rng.normal(0, 1, labels.shape)
    return Predictions(labels=labels.astype(float), outputs=outputs, classes=CLASSES.names)


def test_correct_outputs_score_one_and_normal_for_every_record_scores_zero():
    labels = predictions().labels
    assert challenge_metric(labels, labels, 2020) == pytest.approx(1)
    assert challenge_metric(labels, one_hot([NORMAL_COLUMN] * len(labels)), 2020) == pytest.approx(0)


def test_a_class_of_similar_treatment_earns_more_than_another():
    labels = one_hot([CLASSES.names.index("AF")] * 5)
    similar = challenge_metric(labels, one_hot([CLASSES.names.index("AFL")] * 5), 2020)
    different = challenge_metric(labels, one_hot([CLASSES.names.index("IAVB")] * 5), 2020)
    assert 1 > similar > different


def test_the_score_does_not_depend_on_the_chunk_size(monkeypatch):
    test = predictions()
    in_one_chunk = challenge_metric(test.labels, test.outputs > 0, 2020)
    monkeypatch.setattr("kdkit_ecg.metrics.official._CHUNK", 7)
    assert challenge_metric(test.labels, test.outputs > 0, 2020) == pytest.approx(in_one_chunk, abs=1e-12)
    assert ChallengeMetric(2020).compute(test).value == pytest.approx(in_one_chunk, abs=1e-12)


@pytest.mark.parametrize("labels", [one_hot([NORMAL_COLUMN] * 3), np.zeros((3, 24)), np.zeros((0, 24))])
def test_the_metric_is_zero_if_normal_is_already_correct(labels):
    assert challenge_metric(labels, labels, 2020) == 0.0


def test_fitting_raises_the_metric_and_returns_a_copy():
    metric = ChallengeMetric(2020)
    fitted = metric.fit(predictions())
    assert metric.thresholds == ()
    assert len(fitted.thresholds) == len(CLASSES.names)
    assert fitted.compute(predictions()).value > metric.compute(predictions()).value + 0.02
    assert fitted.compute(predictions(seed=1)).value > metric.compute(predictions(seed=1)).value


def test_no_change_of_a_single_threshold_gains_much():
    fitted = ChallengeMetric(2020).fit(predictions())
    best = fitted.compute(predictions()).value
    for column in range(0, len(CLASSES.names), 5):
        for probability in np.linspace(0.05, 0.95, 10):
            changed = list(fitted.thresholds)
            changed[column] = float(np.log(probability / (1 - probability)))
            assert ChallengeMetric(2020, thresholds=tuple(changed)).compute(predictions()).value <= best + 1e-3


def test_a_shift_of_all_logits_does_not_change_the_fitted_metric():
    high = ChallengeMetric(2020).fit(predictions(shift=3)).compute(predictions(shift=3)).value
    low = ChallengeMetric(2020).fit(predictions(shift=-4)).compute(predictions(shift=-4)).value
    assert high == pytest.approx(low, abs=0.01)


def test_add_highest_predicts_a_class_for_every_record():
    labels = one_hot([0, 1, 2])
    negative = Predictions(labels=labels, outputs=labels - 9, classes=CLASSES.names)
    assert ChallengeMetric(2020).compute(negative).value < 0.5
    assert ChallengeMetric(2020, add_highest=True).compute(negative).value == pytest.approx(1)
    assert ChallengeMetric(2020, add_highest=True).fit(negative).compute(negative).value == pytest.approx(1)


def test_saturated_outputs_have_a_metric():
    labels = one_hot([0, 1, NORMAL_COLUMN])
    saturated = Predictions(labels=labels, outputs=1e6 * (labels - 0.5), classes=CLASSES.names)
    assert ChallengeMetric(2020).fit(saturated).compute(saturated).value == pytest.approx(1)


def test_classes_without_positives_are_named_in_the_note():
    labels = one_hot([0, NORMAL_COLUMN])
    note = ChallengeMetric(2020).compute(Predictions(labels=labels, outputs=labels, classes=CLASSES.names)).note
    assert "AF" in note
    assert "NSR" not in note
    normal = Predictions(labels=one_hot([NORMAL_COLUMN]), outputs=one_hot([NORMAL_COLUMN]), classes=CLASSES.names)
    assert "0 by definition" in ChallengeMetric(2020).compute(normal).note


def test_classes_of_another_year_are_refused():
    with pytest.raises(RecipeError, match=r"ChallengeMetric\(2021\) scores 26 classes"):
        ChallengeMetric(2021).fit(predictions())


def test_a_year_without_a_challenge_is_refused():
    with pytest.raises(RecipeError, match="2020 or 2021, got 2019"):
        ChallengeMetric(2019)
    with pytest.raises(RecipeError, match="add_highest must be True or False; got 'no'"):
        ChallengeMetric(add_highest="no")


LABELS = one_hot([3, 5, 8])
PROBABILITIES = np.where(LABELS > 0, 0.9, 0.2)


@pytest.mark.parametrize(
    ("labels", "outputs", "message"),
    [
        (LABELS, LABELS[:1], "a row for each record; got 3 and 1 rows; pass the same records in the same order"),
        (LABELS, LABELS[:2], "got 3 and 2 rows"),
        (LABELS[:2], LABELS, "got 2 and 3 rows"),
        (
            LABELS,
            LABELS[:, :1],
            r"outputs are \(records, 24\), with the columns of scored_classes\(2020\); got \(3, 1\)",
        ),
        (LABELS[:, :23], LABELS, r"labels are \(records, 24\), .*; got \(3, 23\)"),
        (LABELS[0], LABELS, r"labels are \(records, 24\), .*; got \(24,\)"),
        (LABELS, LABELS[None], r"outputs are \(records, 24\), .*; got \(1, 3, 24\)"),
        (
            LABELS,
            PROBABILITIES,
            r"outputs are decisions, 0 and 1 or bool; got .*0.2.*; turn probabilities into decisions",
        ),
        (LABELS, 8 * LABELS - 4, "outputs are decisions, 0 and 1 or bool; got .*-4"),
        (np.where(LABELS, np.nan, 0), LABELS, "labels are decisions, 0 and 1 or bool; got .*nan"),
        (LABELS, LABELS.astype(str), "outputs are decisions, 0 and 1 or bool; got .*'0.0'"),
    ],
)
def test_the_official_score_takes_decisions_of_the_shape_of_the_labels(labels, outputs, message):
    with pytest.raises(DataError, match=message):
        challenge_metric(labels, outputs, 2020)
    with pytest.raises(DataError, match=message.replace("outputs are", "binary_outputs are")):
        official_figures(labels, outputs, PROBABILITIES, 2020)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_the_official_score_takes_decisions_of_any_dtype(dtype):
    assert challenge_metric(LABELS.astype(dtype), LABELS.astype(dtype).tolist(), 2020) == pytest.approx(1)


@pytest.mark.parametrize("scores", [PROBABILITIES[:2], PROBABILITIES[:, :2], PROBABILITIES[:, 0]])
def test_official_figures_take_a_score_for_each_label(scores):
    with pytest.raises(DataError, match=r"got 3 labels, 2 outputs|outputs \(samples, classes\) for the 24 classes"):
        official_figures(LABELS, LABELS, scores, 2020)


@pytest.mark.parametrize("add_highest", [False, True])
def test_the_metric_of_a_run_takes_labels_and_outputs_that_fit_each_other(add_highest):
    metric, rule = (make(2020, add_highest=add_highest) for make in (ChallengeMetric, BestChallengeMetric))
    for labels, outputs, message in (
        (LABELS, PROBABILITIES[:, :2], r"outputs \(samples, classes\) for the 24 classes"),
        (LABELS[:, :1], PROBABILITIES, r"labels are \(records, 24\)"),
        (np.where(LABELS, np.nan, 0), PROBABILITIES, "labels are decisions, 0 and 1 or bool"),
    ):
        test = Predictions(labels=labels, outputs=outputs, classes=CLASSES.names)
        for call in (metric.compute, metric.fit, rule.choose):
            with pytest.raises(DataError, match=message):
                call(test)


def test_the_metric_of_a_run_takes_a_threshold_per_class():
    with pytest.raises(RecipeError, match="one threshold per class; got 1 for 24 classes"):
        ChallengeMetric(2020, thresholds=(0.5,)).compute(predictions())
