"""Tests of bootstrap intervals: fast resampling equals slow resampling, coverage is nominal, groups are drawn whole."""

from dataclasses import replace

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
    CrossEntropy,
    MacroAUPRC,
    MacroAUROC,
    MacroF1,
    MicroF1,
    Pearson,
)
from kdkit.metrics.bootstrap import bootstrap_interval
from kdkit.metrics.resampling import Resampling, affordable_resamples, draw_counts, drawn_samples, resample
from kdkit_ecg.labels import scored_classes
from kdkit_ecg.metrics import ChallengeMetric
from tests.helpers.metrics import without_resampled

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


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    "metric",
    [MacroAUPRC(), MacroAUROC(), MacroF1(), MicroF1(), Brier(), ChallengeMetric(2020)],
    ids=lambda metric: metric.name,
)
def test_resampling_by_counts_equals_resampling_by_rows(metric, ties):
    test = multilabel(ties=ties)
    metric = metric.fit(multilabel(1, ties=ties))
    counts = next(draw_counts(test, 30, seed=0))
    assert isinstance(metric, Resampling)
    fast, slow = resample(metric, test, counts), resample(without_resampled(metric), test, counts)
    np.testing.assert_allclose(fast.values, slow.values, rtol=0, atol=1e-12)
    np.testing.assert_allclose(fast.by_class, slow.by_class, rtol=0, atol=1e-12)


@pytest.mark.parametrize("metric", [Accuracy(), MacroF1(), MacroAUROC(), Brier()], ids=lambda metric: metric.name)
def test_multiclass_resampling_by_counts_equals_resampling_by_rows(metric):
    test = multiclass()
    counts = next(draw_counts(test, 30, seed=0))
    fast, slow = resample(metric, test, counts), resample(without_resampled(metric), test, counts)
    np.testing.assert_allclose(fast.values, slow.values, rtol=0, atol=1e-12)
    np.testing.assert_allclose(fast.by_class, slow.by_class, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("metric", "measure"),
    [
        (MacroAUPRC(), average_precision_score),
        (MacroAUROC(), roc_auc_score),
        (F1(), lambda truth, outputs: f1_score(truth, outputs >= 0)),
    ],
)
def test_the_metric_of_a_resample_is_that_of_scikit_learn(metric, measure):
    test = multilabel(rows=150, ties=True)
    counts = next(draw_counts(test, 5, seed=3))
    by_class = resample(metric, test, counts).by_class
    for number, column in enumerate(counts.T.astype(int)):
        rows = np.repeat(np.arange(len(test)), column)
        for label in range(4):
            expected = measure(test.labels[rows, label], test.outputs[rows, label])
            assert by_class[label, number] == pytest.approx(expected, abs=1e-12)


def test_calibration_uses_the_bins_of_the_split():
    test = multilabel()
    counts = next(draw_counts(test, 20, seed=0))
    fast, slow = (
        resample(metric, test, counts) for metric in (CalibrationError(), without_resampled(CalibrationError()))
    )
    np.testing.assert_allclose(fast.values, slow.values, atol=1e-12)  # bins of equal width never move


def test_the_value_is_that_of_the_metric_and_lies_in_the_interval():
    test, validation = multilabel(), multilabel(1)
    plain = MacroF1().fit(validation).compute(test)
    result = BootstrapInterval(MacroF1(), resamples=200).fit(validation).compute(test)
    assert (result.value, result.by_class) == (plain.value, plain.by_class)
    assert result.interval[0] < result.value < result.interval[1]
    assert set(result.intervals_by_class) == set(result.by_class)
    assert "95%, bias-corrected percentiles of 200 resamples of samples" in result.note


def test_the_interval_depends_on_the_seed():
    test = multilabel()
    first, repeated, different = (
        BootstrapInterval(MacroAUROC(), resamples=50, seed=seed).compute(test).interval for seed in (0, 0, 1)
    )
    assert first == repeated != different


def test_counts_do_not_depend_on_the_size_of_a_chunk(monkeypatch):
    test = multilabel()
    together = np.concatenate(list(draw_counts(test, 20, seed=0)), axis=1)
    monkeypatch.setattr("kdkit.metrics.resampling._CHUNK", 7 * 8 * len(CLASSES))
    chunks = list(draw_counts(test, 20, seed=0))
    assert [chunk.shape[1] for chunk in chunks] == [7, 7, 6]
    assert np.array_equal(np.concatenate(chunks, axis=1), together)
    assert (together.sum(0) == len(test)).all()


@pytest.mark.parametrize("drawn", [1, 250, 10**6], ids=["one resample at a time", "several", "all at once"])
def test_counts_are_those_of_a_call_per_resample(drawn, monkeypatch):
    test = multilabel(rows=61)
    monkeypatch.setattr("kdkit.metrics.resampling._DRAWN", drawn)
    random = np.random.default_rng(3)
    expected = [np.bincount(random.integers(0, 61, 61), minlength=61) for _ in range(20)]
    assert np.array_equal(next(draw_counts(test, 20, seed=3)).T, expected)


def test_a_vocabulary_takes_little_memory(monkeypatch):
    labels = np.arange(60).reshape(20, 3) % 7  # of texts of three words, which use 7 of 500 words
    test = Predictions(labels=labels, outputs=labels[::-1], classes=tuple(map(str, range(500))), per_position=True)
    metric = BootstrapInterval(Accuracy(), resamples=50)
    whole = metric.compute(test)
    monkeypatch.setattr("kdkit.metrics.resampling._CHUNK", 9 * 8 * 500)
    assert [chunk.shape[1] for chunk in draw_counts(test, 20, seed=0)] == [9, 9, 2]
    assert metric.compute(test) == whole
    assert list(whole.intervals_by_class) == [str(word) for word in range(7)]


class ShareOfPatients:
    """The share of patients whose samples are right on average."""

    name = "share_of_patients"

    def fit(self, validation):
        return self

    def compute(self, test):
        right = test.outputs.argmax(1) == test.labels
        patients = [right[test.groups == group].mean() > 0.5 for group in np.unique(test.groups)]
        return MetricResult(value=np.mean(patients))


def test_a_metric_by_group_counts_a_group_as_often_as_it_is_drawn():
    labels = np.arange(60) % 2
    outputs = np.eye(2)[np.where(np.random.default_rng(0).random(60) < 0.7, labels, 1 - labels)]
    samples = Predictions(labels=labels, outputs=outputs, classes=("a", "b"))
    expected = BootstrapInterval(without_resampled(Accuracy()), resamples=200).compute(samples).interval
    for count in (1, 2):  # samples of each patient
        rows = np.repeat(np.arange(60), count)
        patients = replace(samples.rows(rows), groups=rows)
        assert BootstrapInterval(ShareOfPatients(), resamples=200).compute(patients).interval == expected


def test_the_first_of_two_equal_groups_keeps_its_number():
    test = replace(multilabel(rows=3), groups=np.array([7, -2, 7]))
    drawn = drawn_samples(test, np.array([2, 1, 2]))
    assert drawn.groups.tolist() == [7, 9, -2, 7, 9]
    assert drawn_samples(test, np.array([0, 0, 0])).groups.tolist() == []


def test_groups_are_drawn_whole():
    groups = np.repeat(np.arange(20), 4)[np.random.default_rng(0).permutation(80)]
    counts = next(draw_counts(multilabel(groups=groups), 10, seed=0))
    for group in range(20):
        assert (counts[groups == group] == counts[groups == group][0]).all()
    assert (counts.sum(0) == 80).all()


@pytest.mark.parametrize("metric", [Accuracy(), Brier(), CrossEntropy(), MacroAUROC(), MacroF1()])
def test_a_split_without_samples_has_no_value_and_no_interval(metric):
    none = Predictions(labels=np.zeros(0, int), outputs=np.zeros((0, 3)), classes=("a", "b", "c"))
    result = BootstrapInterval(metric).compute(none)
    assert np.isnan([result.value, *result.interval]).all()
    assert "no intervals: they need two samples or more" in result.note


def test_repeated_samples_do_not_narrow_the_interval_if_they_are_grouped():
    single = multilabel(rows=60)
    rows = np.repeat(np.arange(60), 4)
    fourfold = Predictions(
        labels=single.labels[rows], outputs=single.outputs[rows], classes=CLASSES, groups=rows.astype(np.int64)
    )
    ungrouped = Predictions(labels=fourfold.labels, outputs=fourfold.outputs, classes=CLASSES)
    expected, width, width_ungrouped = (
        np.diff(BootstrapInterval(MicroF1(), resamples=400).compute(test).interval)[0]
        for test in (single, fourfold, ungrouped)
    )
    assert width == pytest.approx(expected, rel=0.01)
    # four times as many independent samples would halve the interval
    assert width_ungrouped == pytest.approx(expected / 2, rel=0.25)


def test_intervals_of_accuracy_have_nominal_coverage():
    """A net is right 70 times out of 100: over 400 splits, 90 % of the 90 % intervals contain 0.7."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        is_right = (random.random(150) < 0.7).astype(int)
        test = Predictions(labels=np.zeros(150, int), outputs=np.eye(2)[1 - is_right], classes=("a", "b"))
        low, high = BootstrapInterval(Accuracy(), resamples=300, level=0.9).compute(test).interval
        covered += low <= 0.7 <= high
    assert 0.86 <= covered / 400 <= 0.94  # 0.9 plus or minus 2.7 standard errors


@pytest.mark.parametrize(("groups", "coverage"), [(3, 0.72), (5, 0.84), (10, 0.9)])
def test_intervals_over_few_groups_are_too_narrow_by_as_much_as_their_notice_says(groups, coverage):
    random, contain = np.random.default_rng(0), []
    for _ in range(300):
        shares = random.beta(8, 4, groups).repeat(40)  # the accuracy of each person; 8 / 12 on average
        predicted = (random.random(len(shares)) > shares).astype(int)
        predictions = Predictions(
            labels=np.zeros(len(shares), int),
            outputs=np.eye(2)[predicted],
            classes=("a", "b"),
            groups=np.arange(groups).repeat(40),
        )
        low, high = BootstrapInterval(Accuracy(), resamples=300).compute(predictions).interval
        contain.append(low <= 8 / 12 <= high)
    assert np.mean(contain) == pytest.approx(coverage, abs=0.04)


def test_intervals_of_the_roc_area_have_nominal_coverage():
    """Outputs of positives are one standard deviation larger, so the area is Phi(1 / sqrt 2)."""
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(150):
        labels = (np.arange(200) < 60).astype(float)[:, None]
        test = Predictions(labels=labels, outputs=labels + random.normal(size=(200, 1)), classes=("a",))
        low, high = BootstrapInterval(MacroAUROC(), resamples=200).compute(test).interval
        covered += low <= 0.7602499 <= high
    assert 0.90 <= covered / 150 <= 0.99


def test_any_metric_can_have_an_interval():
    random = np.random.default_rng(0)
    labels = random.normal(size=(40, 2))
    test = Predictions(labels=labels, outputs=labels + random.normal(0, 0.5, (40, 2)), classes=("x", "y"))
    metric = BootstrapInterval(R2(), resamples=50)
    assert isinstance(metric, Metric)
    result = metric.fit(test).compute(test)
    assert result.interval[0] < result.value < result.interval[1]


@pytest.mark.parametrize("metric", [R2(), Pearson()])
@pytest.mark.parametrize("offset", [0.0, 37.3])
def test_resamples_in_which_a_column_is_constant_are_left_out(metric, offset):
    labels = np.full((50, 1), offset)
    labels[3] += 1.7  # two of five resamples do not contain this sample
    outputs = labels + np.random.default_rng(0).normal(0, 0.1, (50, 1))
    test = Predictions(labels=labels, outputs=outputs, classes=("x",))
    low, high = BootstrapInterval(metric, resamples=200).compute(test).interval
    assert 0.5 < low < high < 1
    counts = np.random.default_rng(1).integers(0, 4, (50, 20)).astype(np.float32)
    counts[3] = 0
    assert np.isnan(metric.resampled(test, counts).values).all()


def test_a_class_is_left_out_of_resamples_without_positives():
    test = multilabel(rows=30)
    labels = np.zeros_like(test.labels)
    labels[0, 0] = labels[1:12, 1] = 1
    rare = Predictions(labels=labels, outputs=test.outputs, classes=CLASSES)
    result = BootstrapInterval(MacroAUPRC(), resamples=100).compute(rare)
    assert set(result.intervals_by_class) == set(CLASSES[:2])
    assert np.isfinite(list(result.intervals_by_class.values())).all()


def test_an_undefined_metric_has_an_interval_without_bounds():
    empty = Predictions(labels=np.zeros((4, 3)), outputs=np.zeros((4, 3)), classes=("a", "b", "c"))
    result = BootstrapInterval(MacroAUPRC(), resamples=10).compute(empty)
    assert np.isnan([result.value, *result.interval]).all()


def test_an_interval_has_the_name_and_the_direction_of_its_metric():
    assert BootstrapInterval(MacroF1()).name == "macro_f1"
    assert BootstrapInterval(Brier()).lower_is_better
    assert not BootstrapInterval(MacroF1()).lower_is_better


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resamples": 1}, "at least 2"),
        ({"level": 95}, "between 0 and 1"),
        ({"metric": MacroAUROC}, "the class MacroAUROC; did you forget"),
        ({"metric": BootstrapInterval(MacroAUROC())}, "a metric without an interval"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        BootstrapInterval(**{"metric": MacroAUROC(), **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value": None}, "the value in a MetricResult must be one number; got None"),
        ({"value": "0.5"}, "must be one number; got '0.5'"),
        ({"value": np.zeros(2)}, "must be one number"),
        ({"value": 0.5, "by_class": {"deep": "much"}}, "the value of 'deep' in a MetricResult must be one number"),
        ({"value": 0.5, "by_class": [0.5]}, r"mapping from class names to numbers .*; got by_class \[0.5\]"),
        ({"value": 0.5, "note": 3}, "a text as its note; got .* note 3"),
    ],
)
def test_a_result_that_no_table_can_show_is_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        MetricResult(**options)


@pytest.mark.parametrize("value", [1, True, np.float32(1), np.array(1.0)])
def test_any_scalar_is_the_value_of_a_result(value):
    assert MetricResult(value=value).value == 1.0


def test_a_result_has_no_interval_by_default():
    assert MetricResult(value=0.5).interval is None
    assert MacroF1().compute(multilabel()).interval is None


def test_intervals_of_average_precision_of_rare_classes_have_nearly_nominal_coverage():
    """A sample that is drawn twice ranks next to itself, so that plain percentiles contain it 3 times of 4 only."""
    random = np.random.default_rng(2)

    def split(rows):
        labels = (random.random((rows, 3)) < 0.05).astype(float)
        return Predictions(labels=labels, outputs=labels + random.normal(size=labels.shape), classes=("a", "b", "c"))

    expected = MacroAUPRC().compute(split(200_000)).value
    covered = 0
    for _ in range(60):
        low, high = BootstrapInterval(MacroAUPRC(), resamples=200).compute(split(100)).interval
        assert 0 <= low <= high <= 1
        covered += low <= expected <= high
    assert covered >= 48  # plain percentiles: about 44


@pytest.mark.parametrize("metric", [CalibrationError(), CalibrationError("equal_mass")])
def test_the_interval_of_a_calibration_error_is_around_its_value(metric):
    random = np.random.default_rng(0)
    logits = random.normal(size=(400, 2))
    labels = (random.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)  # calibrated
    result = BootstrapInterval(metric, resamples=200).compute(
        Predictions(labels=labels, outputs=logits, classes=("a", "b"))
    )
    assert 0 <= result.interval[0] < result.value < result.interval[1]
    assert "95%, spread of the values of 200 resamples" in result.note


def test_an_interval_is_as_wide_as_the_resamples_vary_although_almost_all_are_on_one_side():
    values = np.random.default_rng(0).normal(0.30, 0.01, 1000)
    for value in (0.28, 0.32):
        assert bootstrap_interval(values, value, 0.95) == pytest.approx((value - 0.0196, value + 0.0196), abs=2e-3)
    assert bootstrap_interval(values, 0.295, 0.95) == pytest.approx((0.27, 0.31), abs=2e-3)  # corrected percentiles
    assert bootstrap_interval(values - 0.5, -0.22, 0.95)[0] < -0.22  # a metric that may be negative


def test_an_interval_contains_its_value_although_all_resamples_are_above():
    assert bootstrap_interval(np.array([0.2, 0.3, 0.4]), 0.1, 0.95)[0] == 0.1


@pytest.mark.parametrize(("comparisons", "resamples"), [(1, 200), (4, 400), (19, 1900), (100, 2000)])
def test_a_slow_metric_has_as_many_resamples_as_the_tails_of_its_intervals_need(comparisons, resamples):
    class Slow:
        """A metric without `resampled`."""

    assert affordable_resamples(Slow(), 2000, level=1 - 0.05 / comparisons) == resamples
    assert affordable_resamples(MacroF1(), 2000, level=1 - 0.05 / comparisons) == 2000
