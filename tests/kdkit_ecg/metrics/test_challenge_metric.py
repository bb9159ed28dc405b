"""The challenge metric and its thresholds."""

import numpy as np
import pytest

from kdkit import Predictions, RecipeError
from kdkit_ecg.labels import NORMAL, scored_classes
from kdkit_ecg.metrics import ChallengeMetric, challenge_metric

CLASSES = scored_classes(2020)
PLACE = CLASSES.codes.index(NORMAL)


def one_hot(columns):
    return np.eye(len(CLASSES))[columns]


def predictions(seed=0, records=400, shift=-1.5):
    rng = np.random.default_rng(seed)
    labels = rng.random((records, len(CLASSES))) < np.linspace(0.02, 0.3, len(CLASSES))
    outputs = shift + 2 * labels + rng.normal(0, 1, labels.shape)
    return Predictions(labels=labels.astype(float), outputs=outputs, classes=CLASSES.names)


def test_being_right_is_one_and_calling_everybody_normal_is_zero():
    labels = predictions().labels
    assert challenge_metric(labels, labels, 2020) == pytest.approx(1)
    assert challenge_metric(labels, one_hot([PLACE] * len(labels)), 2020) == pytest.approx(0)


def test_a_class_of_like_treatment_earns_more_than_another():
    labels = one_hot([CLASSES.names.index("AF")] * 5)
    like = challenge_metric(labels, one_hot([CLASSES.names.index("AFL")] * 5), 2020)
    unlike = challenge_metric(labels, one_hot([CLASSES.names.index("IAVB")] * 5), 2020)
    assert 1 > like > unlike


def test_many_records_score_as_they_do_a_few_at_a_time(monkeypatch):
    said = predictions()
    whole = challenge_metric(said.labels, said.outputs > 0, 2020)
    monkeypatch.setattr("kdkit_ecg.metrics.official._AT_ONCE", 7)
    assert challenge_metric(said.labels, said.outputs > 0, 2020) == pytest.approx(whole, abs=1e-12)
    assert ChallengeMetric(2020).compute(said).value == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("labels", [one_hot([PLACE] * 3), np.zeros((3, 24)), np.zeros((0, 24))])
def test_where_normal_is_already_right_the_metric_is_zero(labels):
    assert challenge_metric(labels, labels, 2020) == 0.0


def test_fitting_raises_the_metric_and_leaves_the_score_as_it_was():
    score = ChallengeMetric(2020)
    fitted = score.fit(predictions())
    assert score.thresholds == ()
    assert len(fitted.thresholds) == len(CLASSES)
    assert fitted.compute(predictions()).value > score.compute(predictions()).value + 0.02
    assert fitted.compute(predictions(seed=1)).value > score.compute(predictions(seed=1)).value


def test_no_single_threshold_can_be_bettered_by_much():
    fitted = ChallengeMetric(2020).fit(predictions())
    best = fitted.compute(predictions()).value
    for column in range(0, len(CLASSES), 5):
        for other in np.linspace(0.05, 0.95, 10):
            changed = list(fitted.thresholds)
            changed[column] = float(np.log(other / (1 - other)))
            assert ChallengeMetric(2020, thresholds=tuple(changed)).compute(predictions()).value <= best + 1e-3


def test_thresholds_suit_nets_of_any_boldness():
    bold = ChallengeMetric(2020).fit(predictions(shift=3)).compute(predictions(shift=3)).value
    timid = ChallengeMetric(2020).fit(predictions(shift=-4)).compute(predictions(shift=-4)).value
    assert bold == pytest.approx(timid, abs=0.01)


def test_adding_the_highest_class_answers_every_record():
    labels = one_hot([0, 1, 2])
    silent = Predictions(labels=labels, outputs=labels - 9, classes=CLASSES.names)
    assert ChallengeMetric(2020).compute(silent).value < 0.5
    assert ChallengeMetric(2020, add_highest=True).compute(silent).value == pytest.approx(1)
    assert ChallengeMetric(2020, add_highest=True).fit(silent).compute(silent).value == pytest.approx(1)


def test_saturated_outputs_are_scored():
    labels = one_hot([0, 1, PLACE])
    sure = Predictions(labels=labels, outputs=1e6 * (labels - 0.5), classes=CLASSES.names)
    assert ChallengeMetric(2020).fit(sure).compute(sure).value == pytest.approx(1)


def test_classes_without_positives_are_named_in_the_note():
    labels = one_hot([0, PLACE])
    note = ChallengeMetric(2020).compute(Predictions(labels=labels, outputs=labels, classes=CLASSES.names)).note
    assert "AF" in note
    assert "NSR" not in note
    normal = Predictions(labels=one_hot([PLACE]), outputs=one_hot([PLACE]), classes=CLASSES.names)
    assert "0 by definition" in ChallengeMetric(2020).compute(normal).note


def test_other_classes_than_those_of_the_year_are_refused():
    with pytest.raises(RecipeError, match=r"ChallengeMetric\(2021\) scores 26 classes"):
        ChallengeMetric(2021).fit(predictions())


def test_a_year_without_a_challenge_is_refused_at_once():
    with pytest.raises(RecipeError, match="2020 or 2021, got 2019"):
        ChallengeMetric(2019)
