"""Thresholds: chosen on the selection split alone, against brute force."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdkit import Predictions, RecipeError
from kdkit.metrics import F1, BestF1, FixedThresholds, MacroF1, MicroF1, Thresholds, YoudenJ
from kdkit.metrics.thresholds import best_f1_threshold, best_j_threshold
from kdkit_ecg.labels import scored_classes
from kdkit_ecg.metrics import BestChallengeMetric, ChallengeMetric

NAMES = scored_classes(2020).names


def said(seed, rows=200):
    random = np.random.default_rng(seed)
    labels = (random.random((rows, len(NAMES))) < 0.15).astype(np.float32)
    return Predictions(labels=labels, outputs=2 * labels - 1 + random.normal(0, 1, labels.shape), classes=NAMES)


def f1_at(labels, outputs, threshold):
    found = outputs >= threshold
    return 2 * (found & labels).sum() / (found.sum() + labels.sum())


def j_at(labels, outputs, threshold):
    found = outputs >= threshold
    sensitivity, silence = found[labels].mean(), ~found[~labels]
    return sensitivity + (silence.mean() if len(silence) else 1) - 1  # without negatives none is wrongly said


# Few values, so that many outputs are equal.
OUTPUTS = st.floats(-4, 4, width=16) | st.sampled_from([-1.0, 0.0, 0.5])


@pytest.mark.parametrize(("best", "at"), [(best_f1_threshold, f1_at), (best_j_threshold, j_at)])
@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.booleans(), OUTPUTS), min_size=1, max_size=12))
def test_no_threshold_is_better_than_the_chosen_one(best, at, pairs):
    labels, outputs = (np.array(each) for each in zip(*pairs, strict=True))
    chosen = best(labels.astype(np.float32), outputs.astype(np.float32))
    if not labels.any():
        assert chosen == math.inf
        return
    assert at(labels, outputs, chosen) == pytest.approx(max(at(labels, outputs, each) for each in outputs))


def test_a_threshold_lies_in_the_middle_between_two_outputs():
    assert best_f1_threshold(np.array([0, 0, 1]), np.array([0.0, 1.0, 3.0])) == 2.0
    assert best_j_threshold(np.array([0, 0, 1]), np.array([0.0, 1.0, 3.0])) == 2.0


@pytest.mark.parametrize("best", [best_f1_threshold, best_j_threshold])
def test_a_class_that_is_always_there_is_always_said(best):
    assert best(np.ones(3), np.array([2.0, -1.0, 5.0])) == -1.0


SCORES = [
    MacroF1(),
    MicroF1(thresholds_by=YoudenJ()),
    MacroF1(thresholds_by=BestChallengeMetric(2020)),
    MacroF1(thresholds_by=FixedThresholds(0.3)),
    ChallengeMetric(2020),
    ChallengeMetric(2020, add_highest=True),
    ChallengeMetric(2020, thresholds_by=BestF1()),
    ChallengeMetric(2020, thresholds_by=YoudenJ()),
]
IDS = [score.name for score in SCORES]


@pytest.mark.parametrize("score", SCORES, ids=IDS)
def test_permuting_the_test_labels_moves_no_threshold(score):
    """Each split has a score of its own on the same fitted thresholds, which stay the same bits."""
    validation, test = said(0), said(1)
    permuted = np.random.default_rng(2).permutation(test.labels)
    other = Predictions(labels=permuted, outputs=test.outputs, classes=NAMES)
    figures, thresholds = [], []
    for each in (test, other):
        fitted = score.fit(validation)
        before = np.array(fitted.thresholds).tobytes()
        figures.append(fitted.compute(each).value)
        assert np.array(fitted.thresholds).tobytes() == before
        thresholds.append(before)
    assert thresholds[0] == thresholds[1]
    assert figures[0] > figures[1]


@pytest.mark.parametrize("score", [each for each in SCORES if "fixed" not in each.name])
def test_permuting_the_selection_labels_does_move_them(score):
    validation = said(0)
    permuted = np.random.default_rng(2).permutation(validation.labels)
    other = Predictions(labels=permuted, outputs=validation.outputs, classes=NAMES)
    assert score.fit(validation).thresholds != score.fit(other).thresholds


def test_each_choice_is_best_by_its_own_measure():
    validation = said(0)
    ways = {"f1": BestF1(), "challenge": BestChallengeMetric(2020), "j": YoudenJ()}
    f1 = {name: MacroF1(thresholds_by=way).fit(validation).compute(validation).value for name, way in ways.items()}
    metric = {
        name: ChallengeMetric(2020, thresholds_by=way).fit(validation).compute(validation).value
        for name, way in ways.items()
    }
    assert max(f1, key=f1.get) == "f1"
    assert max(metric, key=metric.get) == "challenge"


def test_scores_at_other_thresholds_have_names_of_their_own():
    assert len(set(IDS)) == len(IDS) - 1  # add_highest is no other choice of thresholds
    assert MacroF1(thresholds_by=YoudenJ()).name == "macro_f1_youden_j"


@pytest.mark.parametrize("way", [BestF1(), YoudenJ(), FixedThresholds(), BestChallengeMetric()])
def test_every_way_is_one_of_thresholds(way):
    assert isinstance(way, Thresholds)
    assert len(way.choose(said(0))) == len(NAMES)


def test_fixed_thresholds_are_one_for_all_or_one_per_class():
    validation = said(0)
    assert FixedThresholds(0.5).choose(validation) == (0.5,) * len(NAMES)
    each = tuple(np.linspace(-1, 1, len(NAMES)).tolist())
    assert FixedThresholds(each).choose(validation) == each
    with pytest.raises(RecipeError, match="2 thresholds for 24 classes"):
        FixedThresholds((0.1, 0.2)).choose(validation)


@pytest.mark.parametrize("given", [YoudenJ, 0.5, "youden_j"])
def test_what_chooses_no_thresholds_is_refused(given):
    with pytest.raises(RecipeError, match="such as BestF1"):
        MacroF1(thresholds_by=given)


def test_an_average_that_does_not_exist_is_refused():
    with pytest.raises(RecipeError, match="did you mean 'macro'"):
        F1("marco")
