"""Tests of thresholds: chosen on the validation split alone, and compared with brute force."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdkit import Predictions, RecipeError
from kdkit.metrics import F1, BestF1, FixedThresholds, MacroF1, MicroF1, MinimumSensitivity, Thresholds, YoudenJ
from kdkit.metrics.thresholds import best_f1_threshold, best_j_threshold
from kdkit_ecg.labels import scored_classes
from kdkit_ecg.metrics import BestChallengeMetric, ChallengeMetric

NAMES = scored_classes(2020).names


def predictions(seed, rows=200):
    random = np.random.default_rng(seed)
    labels = (random.random((rows, len(NAMES))) < 0.15).astype(np.float32)
    return Predictions(labels=labels, outputs=2 * labels - 1 + random.normal(0, 1, labels.shape), classes=NAMES)


def f1_at(labels, outputs, threshold):
    predicted = outputs >= threshold
    return 2 * (predicted & labels).sum() / (predicted.sum() + labels.sum())


def j_at(labels, outputs, threshold):
    predicted = outputs >= threshold
    sensitivity, true_negatives = predicted[labels].mean(), ~predicted[~labels]
    return sensitivity + (true_negatives.mean() if len(true_negatives) else 1) - 1  # specificity is 1 without negatives


# Few distinct values, so that many outputs are equal.
OUTPUTS = st.floats(-4, 4, width=16) | st.sampled_from([-1.0, 0.0, 0.5])


@pytest.mark.parametrize(("best", "at"), [(best_f1_threshold, f1_at), (best_j_threshold, j_at)])
@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.booleans(), OUTPUTS), min_size=1, max_size=12))
def test_no_threshold_is_better_than_the_chosen_one(best, at, pairs):
    labels, outputs = (np.array(column) for column in zip(*pairs, strict=True))
    chosen = best(labels.astype(np.float32), outputs.astype(np.float32))
    if not labels.any():
        assert chosen == math.inf
        return
    assert at(labels, outputs, chosen) == pytest.approx(max(at(labels, outputs, output) for output in outputs))


def test_a_threshold_lies_in_the_middle_between_two_outputs():
    assert best_f1_threshold(np.array([0, 0, 1]), np.array([0.0, 1.0, 3.0])) == 2.0
    assert best_j_threshold(np.array([0, 0, 1]), np.array([0.0, 1.0, 3.0])) == 2.0


@pytest.mark.parametrize("best", [best_f1_threshold, best_j_threshold])
@pytest.mark.parametrize("absent", [-np.inf, -1.0])
@pytest.mark.parametrize("present", [np.inf, 2.0])
def test_infinite_outputs_are_separated(best, absent, present):
    threshold = best(np.array([0, 1]), np.array([absent, present]))
    assert absent < threshold <= present


@pytest.mark.parametrize("best", [best_f1_threshold, best_j_threshold])
def test_a_class_without_negatives_is_always_predicted(best):
    assert best(np.ones(3), np.array([2.0, -1.0, 5.0])) == -1.0


@pytest.mark.parametrize("sensitivity", [0.001, 0.8, 0.95, 1.0])
def test_the_largest_threshold_with_a_sensitivity_is_chosen(sensitivity):
    validation = predictions(0)
    thresholds = MinimumSensitivity(sensitivity).choose(validation)
    for threshold, labels, outputs in zip(thresholds, validation.labels.T > 0, validation.outputs.T, strict=True):
        assert (outputs >= threshold)[labels].mean() >= sensitivity
        higher = np.sort(outputs[outputs >= threshold])[1:]  # the next threshold would leave one out
        assert not len(higher) or (outputs >= higher[0])[labels].mean() < sensitivity
    for wrong in (0, 1.1, "0.9", True):
        with pytest.raises(RecipeError, match="sensitivity must be a number above 0 and at most 1"):
            MinimumSensitivity(wrong)


@pytest.mark.parametrize("rule", [BestF1(), YoudenJ(), MinimumSensitivity()])
def test_mixed_labels_count_as_present_above_one_half_as_in_f1(rule):
    whole = predictions(0)
    labels = np.random.default_rng(0).uniform(0, 0.5, whole.labels.shape).astype(np.float32) + whole.labels / 2
    mixed = Predictions(labels=labels, outputs=whole.outputs, classes=NAMES)
    assert rule.choose(mixed) == rule.choose(whole)


METRICS = [
    MacroF1(),
    MicroF1(thresholds_by=YoudenJ()),
    MacroF1(thresholds_by=BestChallengeMetric(2020)),
    MacroF1(thresholds_by=FixedThresholds(0.3)),
    ChallengeMetric(2020),
    ChallengeMetric(2020, add_highest=True),
    ChallengeMetric(2020, thresholds_by=BestF1()),
    ChallengeMetric(2020, thresholds_by=YoudenJ()),
]
IDS = [metric.name for metric in METRICS]


@pytest.mark.parametrize("metric", METRICS, ids=IDS)
def test_permuting_the_test_labels_does_not_change_thresholds(metric):
    """The value changes, but the fitted thresholds stay the same to the bit."""
    validation, test = predictions(0), predictions(1)
    permuted = np.random.default_rng(2).permutation(test.labels)
    shuffled = Predictions(labels=permuted, outputs=test.outputs, classes=NAMES)
    values, thresholds = [], []
    for split in (test, shuffled):
        fitted = metric.fit(validation)
        before = np.array(fitted.thresholds).tobytes()
        values.append(fitted.compute(split).value)
        assert np.array(fitted.thresholds).tobytes() == before
        thresholds.append(before)
    assert thresholds[0] == thresholds[1]
    assert values[0] > values[1]


@pytest.mark.parametrize("metric", [metric for metric in METRICS if "fixed" not in metric.name])
def test_permuting_the_validation_labels_changes_thresholds(metric):
    validation = predictions(0)
    permuted = np.random.default_rng(2).permutation(validation.labels)
    shuffled = Predictions(labels=permuted, outputs=validation.outputs, classes=NAMES)
    assert metric.fit(validation).thresholds != metric.fit(shuffled).thresholds


def test_each_rule_is_the_best_by_its_criterion():
    validation = predictions(0)
    rules = {"f1": BestF1(), "challenge": BestChallengeMetric(2020), "j": YoudenJ()}
    f1 = {name: MacroF1(thresholds_by=rule).fit(validation).compute(validation).value for name, rule in rules.items()}
    challenge = {
        name: ChallengeMetric(2020, thresholds_by=rule).fit(validation).compute(validation).value
        for name, rule in rules.items()
    }
    assert max(f1, key=f1.get) == "f1"
    assert max(challenge, key=challenge.get) == "challenge"


def test_metrics_with_other_rules_have_distinct_names():
    assert len(set(IDS)) == len(IDS) - 1  # add_highest does not change the rule
    assert MacroF1(thresholds_by=YoudenJ()).name == "macro_f1_youden_j"
    assert MacroF1(thresholds_by=MinimumSensitivity(0.9)).name == "macro_f1_sensitivity_90"


@pytest.mark.parametrize("rule", [BestF1(), YoudenJ(), MinimumSensitivity(), FixedThresholds(), BestChallengeMetric()])
def test_every_rule_chooses_one_threshold_per_class(rule):
    assert isinstance(rule, Thresholds)
    assert len(rule.choose(predictions(0))) == len(NAMES)


def test_fixed_thresholds_are_one_for_all_or_one_per_class():
    validation = predictions(0)
    assert FixedThresholds(0.5).choose(validation) == (0.5,) * len(NAMES)
    logits = tuple(np.linspace(-1, 1, len(NAMES)).tolist())
    assert FixedThresholds(logits).choose(validation) == logits
    assert FixedThresholds(list(logits)).choose(validation) == logits
    with pytest.raises(RecipeError, match="2 thresholds for 24 classes"):
        FixedThresholds((0.1, 0.2)).choose(validation)


@pytest.mark.parametrize("rule", [YoudenJ, 0.5, "youden_j"])
def test_an_object_that_chooses_no_thresholds_is_refused(rule):
    with pytest.raises(RecipeError, match="such as BestF1"):
        MacroF1(thresholds_by=rule)


def test_an_average_that_does_not_exist_is_refused():
    with pytest.raises(RecipeError, match="must be 'macro' or 'micro'"):
        F1("marco")
