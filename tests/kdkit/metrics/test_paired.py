"""Which of two nets is better: pairs, intervals and verdicts."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ttest_rel

from kdkit import DataError, Predictions, RecipeError
from kdkit.metrics import (
    Accuracy,
    BootstrapInterval,
    Brier,
    MacroAUROC,
    MacroF1,
    SplitPredictions,
    paired_bootstrap,
    paired_t_interval,
)


def multilabel(skill, seed, rows=300, own=None):
    """Return what a net of some skill says of the samples that `seed` makes; `own` makes it err in its own way too."""
    random = np.random.default_rng(seed)
    labels = (random.random((rows, 2)) < 0.3).astype(float)
    noise = random.normal(0, 1, labels.shape)
    if own is not None:
        noise += np.random.default_rng(own).normal(0, 0.3, labels.shape)
    return Predictions(labels=labels, outputs=skill * labels + noise, classes=("a", "b"), ids=np.arange(rows))


def said(skill, own=None):
    return SplitPredictions(multilabel(skill, 0, own=own), multilabel(skill, 1, own=own))


def changed(one, **changes):
    return SplitPredictions(
        *(replace(each, **{name: change(each) for name, change in changes.items()}) for each in one)
    )


@pytest.mark.parametrize("score", [MacroAUROC(), MacroF1()])
def test_a_better_net_is_found_better_and_the_other_worse(score):
    good, bad = said(2.0), said(1.0)
    forth, back = paired_bootstrap(score, good, bad, resamples=200), paired_bootstrap(score, bad, good, resamples=200)
    assert forth.verdict == "better"
    assert back.verdict == "worse"
    assert forth.value == pytest.approx(-back.value)
    assert forth.interval[0] < forth.value < forth.interval[1]
    assert forth.pairs == 300


def test_a_net_is_not_distinguishable_from_itself_nor_from_its_like():
    assert paired_bootstrap(MacroAUROC(), said(1.0), said(1.0), resamples=50).interval == (0.0, 0.0)
    assert paired_bootstrap(MacroAUROC(), said(1.0), said(1.0), resamples=50).verdict == "not distinguishable"
    assert (
        paired_bootstrap(MacroAUROC(), said(1.0, own=98), said(1.0, own=99), resamples=200).verdict
        == "not distinguishable"
    )


def test_of_several_runs_the_means_are_compared_on_the_same_resamples():
    ours, theirs = [said(2.0, own=each) for each in (1, 2, 3)], [said(1.0, own=each) for each in (4, 5, 6)]
    several = paired_bootstrap(MacroAUROC(), ours, theirs, resamples=200)
    single = [
        paired_bootstrap(MacroAUROC(), one, other, resamples=200) for one, other in zip(ours, theirs, strict=True)
    ]
    assert several.value == pytest.approx(np.mean([each.value for each in single]))
    widths = [each.interval[1] - each.interval[0] for each in single]
    assert several.interval[1] - several.interval[0] < np.mean(widths)  # what a run errs by itself is averaged out
    assert several.pairs == 300
    assert paired_bootstrap(MacroAUROC(), ours[:1], theirs[:1], resamples=200) == single[0]


def test_runs_that_are_no_pairs_are_refused():
    with pytest.raises(DataError, match="got 2 and 1"):
        paired_bootstrap(MacroAUROC(), [said(1.0)] * 2, said(1.0))
    with pytest.raises(DataError, match="got 0 and 0"):
        paired_bootstrap(MacroAUROC(), [], [])
    strange = changed(said(1.0), ids=lambda each: each.ids + 1)
    with pytest.raises(DataError, match="other samples"):
        paired_bootstrap(MacroAUROC(), [said(1.0)] * 2, [said(1.0), strange])


def test_of_an_error_the_net_with_less_of_it_is_better():
    sure = changed(said(1.0), outputs=lambda each: 9 * each.labels - 4)
    difference = paired_bootstrap(Brier(), sure, said(1.0), resamples=100)
    assert difference.value < 0
    assert difference.verdict == "better"


def test_each_net_has_thresholds_from_its_own_selection_split():
    shifted = changed(said(2.0), outputs=lambda each: each.outputs + 5)
    assert paired_bootstrap(MacroF1(), shifted, said(2.0), resamples=50).value == pytest.approx(0)


def test_pairing_is_narrower_than_two_intervals_where_nets_err_alike():
    one, other = said(1.0), said(1.0, own=98)
    difference = paired_bootstrap(MacroAUROC(), one, other, resamples=300)
    alone = BootstrapInterval(MacroAUROC(), resamples=300).compute(one.test).interval
    assert np.diff(difference.interval)[0] < 0.6 * np.diff(alone)[0]


def test_answers_about_other_samples_are_not_compared():
    one = said(1.0)
    other = SplitPredictions(one.validation, multilabel(1.0, 5))
    with pytest.raises(DataError, match="other samples"):
        paired_bootstrap(MacroAUROC(), one, other)
    fewer = changed(
        one, labels=lambda each: each.labels[:, :1], outputs=lambda each: each.outputs[:, :1], classes=lambda _: ("a",)
    )
    with pytest.raises(DataError, match="other classes"):
        paired_bootstrap(MacroAUROC(), one, fewer)


def test_a_score_with_an_interval_is_compared_without_it():
    pair = said(2.0), said(1.0)
    assert paired_bootstrap(BootstrapInterval(MacroAUROC()), *pair, resamples=50) == paired_bootstrap(
        MacroAUROC(), *pair, resamples=50
    )


def test_a_level_that_is_no_share_is_refused():
    with pytest.raises(RecipeError, match="between 0 and 1"):
        paired_t_interval(RUNS, RUNS, level=95)
    with pytest.raises(RecipeError, match="between 0 and 1"):
        paired_bootstrap(MacroAUROC(), said(1.0), said(2.0), level=95)


def test_groups_count_as_pairs():
    validation, test = said(1.0)
    grouped = replace(test, groups=np.arange(300) // 3)
    assert (
        paired_bootstrap(
            MacroAUROC(), SplitPredictions(validation, grouped), SplitPredictions(validation, grouped), resamples=10
        ).pairs
        == 100
    )


RUNS = {(seed, fold): 0.5 + 0.01 * seed + 0.02 * fold for seed in range(3) for fold in range(2)}


def test_runs_are_compared_with_students_interval():
    noise = np.random.default_rng(0).normal(0, 0.01, len(RUNS))
    other = {run: value - 0.02 + extra for (run, value), extra in zip(RUNS.items(), noise, strict=True)}
    difference = paired_t_interval(RUNS, dict(reversed(other.items())))
    expected = ttest_rel(list(RUNS.values()), list(other.values())).confidence_interval(0.95)
    assert difference.interval == pytest.approx((expected.low, expected.high))
    assert difference.pairs == 6
    assert difference.verdict == "better"
    assert paired_t_interval(RUNS, other, lower_is_better=True).verdict == "worse"


def test_runs_that_learn_from_overlapping_folds_are_less_certain():
    other = {run: value - 0.01 * (run[0] + 1) for run, value in RUNS.items()}
    plain, corrected = paired_t_interval(RUNS, other), paired_t_interval(RUNS, other, overlap=1 / 4)
    widths = [np.diff(each.interval)[0] for each in (plain, corrected)]
    assert widths[1] / widths[0] == pytest.approx(np.sqrt((1 / 6 + 1 / 4) / (1 / 6)))


def test_the_interval_over_seeds_holds_the_truth_as_often_as_it_claims():
    random = np.random.default_rng(0)
    held = 0
    for _ in range(500):
        shared, extra = random.normal(0, 1, 5), random.normal(0.3, 0.5, 5)
        low, high = paired_t_interval(dict(enumerate(shared + extra)), dict(enumerate(shared)), level=0.9).interval
        held += low <= 0.3 <= high
    assert 0.86 <= held / 500 <= 0.94


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({0: 0.5, 1: 0.6}, {0: 0.5, 2: 0.6}, "stand alone: 1, 2"),
        ({0: 0.5}, {0: 0.4}, "2 pairs or more"),
        ({0: 0.5, 1: float("nan")}, {0: 0.5, 1: 0.6}, "NaN"),
    ],
)
def test_runs_that_make_no_pairs_are_refused(one, other, message):
    with pytest.raises(DataError, match=message):
        paired_t_interval(one, other)


def test_a_difference_whose_interval_has_no_bounds_is_no_verdict():
    empty = Predictions(labels=np.zeros((4, 2)), outputs=np.zeros((4, 2)), classes=("a", "b"))
    difference = paired_bootstrap(
        MacroAUROC(), SplitPredictions(empty, empty), SplitPredictions(empty, empty), resamples=10
    )
    assert difference.verdict == "not distinguishable"


def test_classes_that_exclude_each_other_are_compared_too():
    labels = np.arange(60) % 3
    right = Predictions(labels=labels, outputs=np.eye(3)[labels], classes=("a", "b", "c"))
    wrong = replace(right, outputs=np.eye(3)[(labels + 1) % 3])
    assert (
        paired_bootstrap(Accuracy(), SplitPredictions(right, right), SplitPredictions(wrong, wrong), resamples=20).value
        == 1
    )
