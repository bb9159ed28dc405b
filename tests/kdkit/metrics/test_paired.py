"""Tests of comparing two nets: pairs, intervals and verdicts."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ttest_rel

from kdkit import DataError, Predictions, RecipeError
from kdkit.metrics import (
    Accuracy,
    BootstrapInterval,
    Brier,
    CalibrationError,
    MacroAUROC,
    MacroF1,
    SplitPredictions,
    compare_over_seeds,
    paired_bootstrap,
    paired_t_interval,
)


def multilabel(skill, seed, rows=300, run_seed=None):
    """Return predictions of a net for the samples of `seed`; `run_seed` adds errors that only this run makes."""
    random = np.random.default_rng(seed)
    labels = (random.random((rows, 2)) < 0.3).astype(float)
    noise = random.normal(0, 1, labels.shape)
    if run_seed is not None:
        noise += np.random.default_rng(run_seed).normal(0, 0.3, labels.shape)
    return Predictions(labels=labels, outputs=skill * labels + noise, classes=("a", "b"), ids=np.arange(rows))


def run(skill, run_seed=None):
    return SplitPredictions(multilabel(skill, 0, run_seed=run_seed), multilabel(skill, 1, run_seed=run_seed))


def changed(predictions, **changes):
    return SplitPredictions(
        *(replace(split, **{name: change(split) for name, change in changes.items()}) for split in predictions)
    )


@pytest.mark.parametrize("metric", [MacroAUROC(), MacroF1()])
def test_a_better_net_is_better_and_the_comparison_is_antisymmetric(metric):
    good, bad = run(2.0), run(1.0)
    forth, back = paired_bootstrap(metric, good, bad, resamples=200), paired_bootstrap(metric, bad, good, resamples=200)
    assert forth.verdict == "better"
    assert back.verdict == "worse"
    assert forth.value == pytest.approx(-back.value)
    assert forth.interval[0] < forth.value < forth.interval[1]
    assert forth.pairs == 300


def test_a_net_is_not_distinguishable_from_itself_or_from_an_equally_good_one():
    assert paired_bootstrap(MacroAUROC(), run(1.0), run(1.0), resamples=50).interval == (0.0, 0.0)
    assert paired_bootstrap(MacroAUROC(), run(1.0), run(1.0), resamples=50).verdict == "not distinguishable"
    assert (
        paired_bootstrap(MacroAUROC(), run(1.0, run_seed=98), run(1.0, run_seed=99), resamples=200).verdict
        == "not distinguishable"
    )


def test_the_means_of_several_runs_are_compared_on_the_same_resamples():
    good, bad = [run(2.0, run_seed=seed) for seed in (1, 2, 3)], [run(1.0, run_seed=seed) for seed in (4, 5, 6)]
    several = paired_bootstrap(MacroAUROC(), good, bad, resamples=200)
    single = [paired_bootstrap(MacroAUROC(), *pair, resamples=200) for pair in zip(good, bad, strict=True)]
    assert several.value == pytest.approx(np.mean([difference.value for difference in single]))
    widths = [difference.interval[1] - difference.interval[0] for difference in single]
    assert several.interval[1] - several.interval[0] < np.mean(widths)  # the errors of single runs average out
    assert several.pairs == 300
    assert paired_bootstrap(MacroAUROC(), good[:1], bad[:1], resamples=200) == single[0]


def test_runs_that_are_no_pairs_are_refused():
    with pytest.raises(DataError, match="got 2 and 1"):
        paired_bootstrap(MacroAUROC(), [run(1.0)] * 2, run(1.0))
    with pytest.raises(DataError, match="got 0 and 0"):
        paired_bootstrap(MacroAUROC(), [], [])
    for wrong in (run(1.0).test, run(1.0).test.outputs, [run(1.0).test]):
        with pytest.raises(DataError, match=r"compared by SplitPredictions\(validation, test\) of each"):
            paired_bootstrap(MacroAUROC(), wrong, wrong)
    shifted = changed(run(1.0), ids=lambda split: split.ids + 1)
    with pytest.raises(DataError, match="predictions for different samples"):
        paired_bootstrap(MacroAUROC(), [run(1.0)] * 2, [run(1.0), shifted])


def test_the_net_with_the_lower_error_is_better():
    nearly_right = changed(run(1.0), outputs=lambda split: 9 * split.labels - 4)
    difference = paired_bootstrap(Brier(), nearly_right, run(1.0), resamples=100)
    assert difference.value < 0
    assert difference.verdict == "better"


def test_each_net_has_thresholds_from_its_validation_split():
    shifted = changed(run(2.0), outputs=lambda split: split.outputs + 5)
    assert paired_bootstrap(MacroF1(), shifted, run(2.0), resamples=50).value == pytest.approx(0)


def test_a_paired_interval_is_narrower_if_nets_make_similar_errors():
    net, similar = run(1.0), run(1.0, run_seed=98)
    difference = paired_bootstrap(MacroAUROC(), net, similar, resamples=300)
    unpaired = BootstrapInterval(MacroAUROC(), resamples=300).compute(net.test).interval
    assert np.diff(difference.interval)[0] < 0.6 * np.diff(unpaired)[0]


def test_predictions_for_different_samples_are_not_compared():
    net = run(1.0)
    other_samples = SplitPredictions(net.validation, multilabel(1.0, 5))
    with pytest.raises(DataError, match="predictions for different samples"):
        paired_bootstrap(MacroAUROC(), net, other_samples)
    fewer = changed(
        net,
        labels=lambda split: split.labels[:, :1],
        outputs=lambda split: split.outputs[:, :1],
        classes=lambda _: ("a",),
    )
    with pytest.raises(DataError, match="different classes: a, b and a"):
        paired_bootstrap(MacroAUROC(), net, fewer)


def test_a_metric_with_an_interval_is_compared_without_it():
    pair = run(2.0), run(1.0)
    assert paired_bootstrap(BootstrapInterval(MacroAUROC()), *pair, resamples=50) == paired_bootstrap(
        MacroAUROC(), *pair, resamples=50
    )


def test_a_level_beyond_one_is_refused():
    with pytest.raises(RecipeError, match="between 0 and 1"):
        paired_t_interval(RUNS, RUNS, level=95)
    with pytest.raises(RecipeError, match="between 0 and 1"):
        paired_bootstrap(MacroAUROC(), run(1.0), run(2.0), level=95)


def test_groups_count_as_pairs():
    validation, test = run(1.0)
    grouped = replace(test, groups=np.arange(300) // 3)
    assert (
        paired_bootstrap(
            MacroAUROC(), SplitPredictions(validation, grouped), SplitPredictions(validation, grouped), resamples=10
        ).pairs
        == 100
    )


def test_one_group_has_no_interval_and_no_verdict():
    pair = [
        SplitPredictions(validation, replace(test, groups=np.zeros(300, dtype=np.int64)))
        for validation, test in (run(2.0), run(0.1))
    ]
    difference = paired_bootstrap(MacroAUROC(), *pair, resamples=10)
    assert difference.value > 0.1
    assert np.isnan(difference.interval).all()
    assert (difference.pairs, difference.verdict) == (1, "not distinguishable")
    result = BootstrapInterval(MacroAUROC(), resamples=10).compute(pair[0].test)
    assert np.isnan([result.interval, *result.intervals_by_class.values()]).all()
    assert result.note == "no intervals: they need two groups (patients) or more"


RUNS = {(seed, fold): 0.5 + 0.01 * seed + 0.02 * fold for seed in range(3) for fold in range(2)}


def test_runs_are_compared_with_students_interval():
    noise = np.random.default_rng(0).normal(0, 0.01, len(RUNS))
    baseline = {run: value - 0.02 + extra for (run, value), extra in zip(RUNS.items(), noise, strict=True)}
    difference = paired_t_interval(RUNS, dict(reversed(baseline.items())))
    expected = ttest_rel(list(RUNS.values()), list(baseline.values())).confidence_interval(0.95)
    assert difference.interval == pytest.approx((expected.low, expected.high))
    assert difference.pairs == 6
    assert difference.verdict == "better"
    assert paired_t_interval(RUNS, baseline, lower_is_better=True).verdict == "worse"


def test_overlapping_folds_widen_the_interval():
    baseline = {run: value - 0.01 * (run[0] + 1) for run, value in RUNS.items()}
    plain, corrected = paired_t_interval(RUNS, baseline), paired_t_interval(RUNS, baseline, overlap=1 / 4)
    widths = [np.diff(difference.interval)[0] for difference in (plain, corrected)]
    assert widths[1] / widths[0] == pytest.approx(np.sqrt((1 / 6 + 1 / 4) / (1 / 6)))


def test_the_interval_over_seeds_has_nominal_coverage():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(500):
        shared, extra = random.normal(0, 1, 5), random.normal(0.3, 0.5, 5)
        low, high = paired_t_interval(dict(enumerate(shared + extra)), dict(enumerate(shared)), level=0.9).interval
        covered += low <= 0.3 <= high
    assert 0.86 <= covered / 500 <= 0.94


@pytest.mark.parametrize(
    ("candidate", "baseline", "message"),
    [
        ({0: 0.5, 1: 0.6}, {0: 0.5, 2: 0.6}, "no counterpart: 1, 2"),
        ({0: 0.5}, {0: 0.4}, "2 pairs or more"),
        ([0.5, 0.6], [0.4, 0.5], "pass {seed: value} for each method; got a list"),
        ({0: 0.5, 1: float("nan")}, {0: 0.5, 1: 0.6}, "NaN"),
    ],
)
def test_runs_that_cannot_be_paired_are_refused(candidate, baseline, message):
    with pytest.raises(DataError, match=message):
        paired_t_interval(candidate, baseline)


def test_an_interval_without_bounds_gives_no_verdict():
    empty = Predictions(labels=np.zeros((4, 2)), outputs=np.zeros((4, 2)), classes=("a", "b"))
    difference = paired_bootstrap(
        MacroAUROC(), SplitPredictions(empty, empty), SplitPredictions(empty, empty), resamples=10
    )
    assert difference.verdict == "not distinguishable"


def test_multiclass_predictions_can_be_compared():
    labels = np.arange(60) % 3
    right = Predictions(labels=labels, outputs=np.eye(3)[labels], classes=("a", "b", "c"))
    wrong = replace(right, outputs=np.eye(3)[(labels + 1) % 3])
    assert (
        paired_bootstrap(Accuracy(), SplitPredictions(right, right), SplitPredictions(wrong, wrong), resamples=20).value
        == 1
    )


def of_seeds(shift, spread, seeds=5, shared=0.0):
    """Return runs of two methods by seed. shift, shared: of the second one, in all its runs; spread: of each seed."""
    random = np.random.default_rng(3)
    labels = (random.random((400, 2)) < 0.3).astype(float)
    signal, taste = labels + random.normal(0, 1, labels.shape), shared * random.normal(0, 1, labels.shape)

    def split(outputs):
        predictions = Predictions(labels=labels, outputs=outputs, classes=("a", "b"))
        return SplitPredictions(predictions, predictions)

    runs = [
        [split(signal + random.normal(0, spread, labels.shape)) for _ in range(seeds)],
        [split(signal + shift * labels + taste + random.normal(0, spread, labels.shape)) for _ in range(seeds)],
    ]
    return runs


def compared(runs, metric=None):
    metric = metric or MacroAUROC()
    values = [{seed: metric.compute(run.test).value for seed, run in enumerate(of_method)} for of_method in runs]
    return compare_over_seeds(metric, values[1], values[0], lambda: (runs[1], runs[0]), resamples=300)


def test_a_method_is_better_if_seeds_and_samples_agree():
    comparison = compared(of_seeds(shift=0.6, spread=0.3))
    assert comparison.verdict == "better"
    total = comparison.total
    assert total.value == pytest.approx(comparison.samples.value)
    for part in (comparison.seeds, comparison.samples):
        assert total.interval[0] <= part.interval[0] < part.interval[1] <= total.interval[1]


def test_the_seeds_of_one_test_split_do_not_decide_alone():
    """Both methods are equally good in the population, and make other errors, the same for each seed."""
    verdicts = set()
    for sign in (1, -1):
        runs = of_seeds(shift=0.0, spread=0.02, shared=sign * 1.0)
        runs[0] = of_seeds(shift=0.0, spread=0.02, shared=-sign * 1.0)[1]
        comparison = compared(runs)
        assert comparison.verdict == "not distinguishable"
        verdicts.add(comparison.seeds.verdict)
    assert verdicts == {"better", "worse"}


def test_what_each_run_adds_to_the_error_over_samples_is_counted_once():
    own, shared = compared(of_seeds(shift=0.3, spread=1.0)), compared(of_seeds(shift=0.3, spread=0.0, shared=1.0))
    half = [(part.samples.interval[1] - part.samples.interval[0]) / 2 / 1.96 for part in (own, shared)]
    assert own.samples.error < 0.6 * half[0]
    assert shared.samples.error == pytest.approx(half[1], rel=0.15)
    single = compared(of_seeds(shift=0.3, spread=1.0, seeds=1))
    assert single.seeds is None
    assert single.total == single.samples
    assert single.verdict == "better"  # these two runs, not the methods


def test_without_an_interval_over_the_samples_there_is_no_verdict():
    runs = of_seeds(shift=0.6, spread=0.3)
    runs[0] = [SplitPredictions(*(split.rows(np.arange(300)) for split in run)) for run in runs[0]]
    comparison = compared(runs)
    assert comparison.seeds.verdict == "better"
    assert (comparison.samples, comparison.verdict) == (None, "not distinguishable")
    assert "different samples" in comparison.note


def test_seeds_with_test_samples_of_their_own_include_their_choice():
    runs = of_seeds(shift=0.6, spread=0.3)
    for method in runs:
        for seed, run in enumerate(method):
            rows = np.random.default_rng(seed).permutation(400)[:300]
            method[seed] = SplitPredictions(*(split.rows(rows) for split in run))
    comparison = compared(runs)
    assert (comparison.samples, comparison.verdict) == (None, "better")
    assert "test samples differ between runs" in comparison.note
    biased = compared(runs, BootstrapInterval(CalibrationError()))
    assert (biased.includes_samples, biased.verdict) == (False, "not distinguishable")


def test_a_run_without_predictions_is_named_in_the_note():
    runs, values = of_seeds(shift=0.6, spread=0.3), ({0: 0.8, 1: 0.9}, {0: 0.7, 1: 0.7})
    comparison = compare_over_seeds(MacroAUROC(), *values, lambda: (runs[1], runs[0][:1]))
    assert comparison.note.startswith("runs are compared in pairs, at least one; got ")


def test_a_calibration_error_is_not_compared():
    """On a split, that of a net that is calibrated and sharp is larger than that of a calibrated one that is blunt."""
    runs = of_seeds(shift=0.6, spread=0.3)
    with pytest.raises(DataError, match="differences of calibration_error have no interval"):
        paired_bootstrap(CalibrationError(), runs[0][0], runs[1][0])
    assert compared(runs, CalibrationError()).verdict == "not distinguishable"
