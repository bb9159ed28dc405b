"""Bootstrap intervals: the fast way is the plain one, coverage is what it claims, groups are drawn whole."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from kdkit import Metric, MetricResult, Predictions, RecipeError
from kdkit.metrics import (
    F1,
    R2,
    Accuracy,
    BootstrapInterval,
    Brier,
    CalibrationError,
    MacroAUPRC,
    MacroAUROC,
    MacroF1,
    MicroF1,
)
from kdkit.metrics.bootstrap import Resampling, draw, resample
from kdkit_ecg.labels import scored_classes
from kdkit_ecg.metrics import ChallengeMetric

CLASSES = scored_classes(2020).names


def multilabel(seed=0, rows=80, ties=False, groups=None):
    random = np.random.default_rng(seed)
    labels = (random.random((rows, len(CLASSES))) < 0.15).astype(np.float32)
    outputs = 2 * labels - 1 + random.normal(0, 1, labels.shape)
    return Predictions(labels=labels, outputs=np.round(outputs) if ties else outputs, classes=CLASSES, groups=groups)


def multiclass(rows=80):
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, rows)
    return Predictions(
        labels=labels, outputs=np.eye(3)[labels] + random.normal(0, 1, (rows, 3)), classes=("a", "b", "c")
    )


def plainly(score):
    """Return the same score without its fast way."""

    class Plain:
        name = "plain"

        def fit(self, validation):
            return self

        def compute(self, test):
            return score.compute(test)

    return Plain()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    "score",
    [MacroAUPRC(), MacroAUROC(), MacroF1(), MicroF1(), Brier(), ChallengeMetric(2020)],
    ids=lambda each: each.name,
)
def test_resamples_by_counts_are_those_by_rows(score, ties):
    test = multilabel(ties=ties)
    score = score.fit(multilabel(1, ties=ties))
    counts = next(draw(test, 30, seed=0))
    assert isinstance(score, Resampling)
    fast, slow = resample(score, test, counts), resample(plainly(score), test, counts)
    np.testing.assert_allclose(fast.values, slow.values, rtol=0, atol=1e-12)
    np.testing.assert_allclose(fast.by_class, slow.by_class, rtol=0, atol=1e-12)


@pytest.mark.parametrize("score", [Accuracy(), MacroF1(), MacroAUROC(), Brier()], ids=lambda each: each.name)
def test_resamples_of_classes_that_exclude_each_other_are_those_by_rows(score):
    test = multiclass()
    counts = next(draw(test, 30, seed=0))
    fast, slow = resample(score, test, counts), resample(plainly(score), test, counts)
    np.testing.assert_allclose(fast.values, slow.values, rtol=0, atol=1e-12)
    np.testing.assert_allclose(fast.by_class, slow.by_class, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("score", "measure"),
    [
        (MacroAUPRC(), average_precision_score),
        (MacroAUROC(), roc_auc_score),
        (F1(), lambda truth, outputs: f1_score(truth, outputs >= 0)),
    ],
)
def test_a_resample_scores_as_scikit_learn_scores_its_rows(score, measure):
    test = multilabel(rows=150, ties=True)
    counts = next(draw(test, 5, seed=3))
    ours = resample(score, test, counts).by_class
    for number, column in enumerate(counts.T.astype(int)):
        rows = np.repeat(np.arange(len(test)), column)
        for place in range(4):
            expected = measure(test.labels[rows, place], test.outputs[rows, place])
            assert ours[place, number] == pytest.approx(expected, abs=1e-12)


def test_calibration_keeps_the_bins_of_the_split():
    test = multilabel()
    counts = next(draw(test, 20, seed=0))
    fast, slow = (resample(each, test, counts) for each in (CalibrationError(), plainly(CalibrationError())))
    np.testing.assert_allclose(fast.values, slow.values, atol=1e-12)  # bins of equal width never move


def test_the_figure_is_the_scores_own_and_lies_within():
    test, validation = multilabel(), multilabel(1)
    plain = MacroF1().fit(validation).compute(test)
    compute_metrics = BootstrapInterval(MacroF1(), resamples=200).fit(validation).compute(test)
    assert (compute_metrics.value, compute_metrics.by_class) == (plain.value, plain.by_class)
    assert compute_metrics.interval[0] < compute_metrics.value < compute_metrics.interval[1]
    assert set(compute_metrics.intervals_by_class) == set(compute_metrics.by_class)
    assert "95%, percentiles of 200 resamples of samples" in compute_metrics.note


def test_the_same_seed_gives_the_same_interval_and_another_gives_another():
    test = multilabel()
    once, again, other = (
        BootstrapInterval(MacroAUROC(), resamples=50, seed=seed).compute(test).interval for seed in (0, 0, 1)
    )
    assert once == again != other


def test_draws_do_not_depend_on_how_many_are_held_at_a_time(monkeypatch):
    test = multilabel()
    together = np.concatenate(list(draw(test, 20, seed=0)), axis=1)
    monkeypatch.setattr("kdkit.metrics.bootstrap._HELD", 7 * len(test))
    apart = list(draw(test, 20, seed=0))
    assert [each.shape[1] for each in apart] == [7, 7, 6]
    assert np.array_equal(np.concatenate(apart, axis=1), together)
    assert (together.sum(0) == len(test)).all()


def test_groups_are_drawn_whole():
    groups = np.repeat(np.arange(20), 4)[np.random.default_rng(0).permutation(80)]
    counts = next(draw(multilabel(groups=groups), 10, seed=0))
    for group in range(20):
        assert (counts[groups == group] == counts[groups == group][0]).all()
    assert (counts.sum(0) == 80).all()


def test_samples_that_say_the_same_thing_fourfold_are_no_more_certain():
    single = multilabel(rows=60)
    rows = np.repeat(np.arange(60), 4)
    fourfold = Predictions(
        labels=single.labels[rows], outputs=single.outputs[rows], classes=CLASSES, groups=rows.astype(np.int64)
    )
    taken_apart = Predictions(labels=fourfold.labels, outputs=fourfold.outputs, classes=CLASSES)
    known, honest, blind = (
        np.diff(BootstrapInterval(MicroF1(), resamples=400).compute(each).interval)[0]
        for each in (single, fourfold, taken_apart)
    )
    assert honest == pytest.approx(known, rel=0.01)
    assert blind == pytest.approx(known / 2, rel=0.25)


def test_intervals_hold_the_true_figure_as_often_as_they_claim():
    """Accuracy of a net that is right 70 times of 100: over 400 splits, 90 % of the 90 % intervals hold 0.7."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        right = (random.random(150) < 0.7).astype(int)
        test = Predictions(labels=np.zeros(150, int), outputs=np.eye(2)[1 - right], classes=("a", "b"))
        low, high = BootstrapInterval(Accuracy(), resamples=300, level=0.9).compute(test).interval
        held += low <= 0.7 <= high
    assert 0.86 <= held / 400 <= 0.94


def test_the_area_under_the_curve_is_held_as_often_as_claimed():
    """Outputs of positives lie one standard deviation higher, so the area is Phi(1 / sqrt 2)."""
    random = np.random.default_rng(1)
    held = 0
    for _ in range(150):
        labels = (np.arange(200) < 60).astype(float)[:, None]
        test = Predictions(labels=labels, outputs=labels + random.normal(size=(200, 1)), classes=("a",))
        low, high = BootstrapInterval(MacroAUROC(), resamples=200).compute(test).interval
        held += low <= 0.7602499 <= high
    assert 0.90 <= held / 150 <= 0.99


def test_any_score_can_have_an_interval():
    random = np.random.default_rng(0)
    labels = random.normal(size=(40, 2))
    test = Predictions(labels=labels, outputs=labels + random.normal(0, 0.5, (40, 2)), classes=("x", "y"))
    score = BootstrapInterval(R2(), resamples=50)
    assert isinstance(score, Metric)
    compute_metrics = score.fit(test).compute(test)
    assert compute_metrics.interval[0] < compute_metrics.value < compute_metrics.interval[1]


def test_a_class_that_some_resamples_lack_is_left_out_of_those():
    test = multilabel(rows=30)
    labels = np.zeros_like(test.labels)
    labels[0, 0] = labels[1:12, 1] = 1
    rare = Predictions(labels=labels, outputs=test.outputs, classes=CLASSES)
    compute_metrics = BootstrapInterval(MacroAUPRC(), resamples=100).compute(rare)
    assert set(compute_metrics.intervals_by_class) == set(CLASSES[:2])
    assert np.isfinite(list(compute_metrics.intervals_by_class.values())).all()


def test_a_score_without_any_figure_has_an_interval_without_bounds():
    empty = Predictions(labels=np.zeros((4, 3)), outputs=np.zeros((4, 3)), classes=("a", "b", "c"))
    compute_metrics = BootstrapInterval(MacroAUPRC(), resamples=10).compute(empty)
    assert np.isnan([compute_metrics.value, *compute_metrics.interval]).all()


def test_an_interval_takes_the_name_and_the_direction_of_its_score():
    assert BootstrapInterval(MacroF1()).name == "macro_f1"
    assert BootstrapInterval(Brier()).lower_is_better
    assert not BootstrapInterval(MacroF1()).lower_is_better


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resamples": 1}, "2 or more"),
        ({"level": 95}, "between 0 and 1"),
        ({"of": MacroAUROC}, "takes a score"),
        ({"of": BootstrapInterval(MacroAUROC())}, "the score itself"),
    ],
)
def test_what_makes_no_interval_is_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        BootstrapInterval(**{"of": MacroAUROC(), **options})


def test_a_figure_has_no_interval_unless_it_was_asked_for():
    assert MetricResult(value=0.5).interval is None
    assert MacroF1().compute(multilabel()).interval is None
