"""Resampling, band-pass filter and z-score of signals."""

from fractions import Fraction

import numpy as np
import pytest
from scipy.signal import resample_poly

from kdkit import DataError
from kdkit_ecg.records.filters import bandpass, rate_ratio, resample, resample_linear, zscore


def tone(hertz, rate, seconds=10):
    return np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)[None]


def rms(signal):
    # Without 300 samples at each end, which the filters distort.
    return float(np.sqrt((signal[:, 300:-300] ** 2).mean()))


@pytest.mark.parametrize("rate", [250, 257, 360.1, 500, 1000, 333.25])
def test_resampling_keeps_the_duration_at_any_rate(rate):
    resampled = resample(tone(5, rate), rate, 257)
    assert abs(resampled.shape[1] - 2570) <= 1
    assert np.allclose(resampled[:, 300:2200], tone(5, 257)[:, 300:2200], atol=2e-3)


def test_resampling_is_that_of_scipy_between_ends_of_0_for_each_record_of_a_rate():
    rng = np.random.default_rng(0)
    for rate in (500, 499.9, 500):
        signal = rng.normal(size=(2, 1000))
        signal[:, [0, -1]] = 0
        ratio = rate_ratio(rate, 257)
        expected = resample_poly(signal, ratio.numerator, ratio.denominator, axis=1)
        assert np.array_equal(resample(signal, rate, 257), expected)


@pytest.mark.parametrize(("rate", "to"), [(500, 257), (250, 257), (500, 100), (100, 500), (360.1, 257)])
def test_resampling_keeps_the_ends_of_a_signal_far_from_0(rate, to):
    def drifting(hertz):
        return np.array([[50], [-3]]) + tone(1, hertz) + [[0], [0.7]] * np.arange(int(10 * hertz)) / hertz

    expected = drifting(to)
    assert np.allclose(resample(drifting(rate), rate, to)[:, : expected.shape[1]], expected, atol=0.05)


def test_a_flat_lead_stays_flat_at_another_rate():
    for time in (1, 2, 3, 2500):
        for rate, to in ((250, 257), (500, 257), (100, 500)):
            assert not zscore(resample(np.full((1, time), 3.3), rate, to)).any()


def test_the_ratio_of_any_two_rates_is_exact_or_off_by_5e_6():
    rng = np.random.default_rng(0)
    odd = [f"{rate:.5f}" for rate in [*rng.uniform(100, 1100, 200), 257.0013, 514.0026, 128.50065]]
    for rate in map(float, ["999.983", "62.4725", "360.1", *odd]):
        exact = Fraction(257) / Fraction(str(rate))
        error = abs(rate_ratio(rate, 257) / exact - 1)
        assert error <= (5e-6 if exact.denominator > 100_000 else 0), rate


@pytest.mark.parametrize("change", [resample, resample_linear])
def test_a_signal_at_the_requested_rate_is_unchanged(change):
    signal = tone(5, 257)
    assert np.array_equal(change(signal, 257, 257.0), signal)


def test_tones_above_half_the_new_rate_vanish_unless_resampled_linearly():
    high = tone(180, 500)
    assert rms(resample(high, 500, 257)) < 0.001
    assert rms(resample_linear(high, 500, 257)) > 0.4


@pytest.mark.parametrize("rate", [0, -500, float("nan"), float("inf")])
def test_a_rate_that_is_not_above_zero_is_refused(rate):
    with pytest.raises(DataError, match="expected finite rates above 0 Hz"):
        resample(tone(5, 500), rate, 257)


@pytest.mark.parametrize("change", [resample, resample_linear])
@pytest.mark.parametrize(("rate", "to"), [(5e9, 257), (500, 1e-9), (1e-4, 257), (500, 1e300)])
def test_rates_that_are_too_far_apart_are_refused(change, rate, to):
    with pytest.raises(DataError, match="times apart; is one of the rates wrong"):
        change(tone(5, 500), rate, to)


@pytest.mark.parametrize("rate", [5, 5.3971, 11.3977])
def test_resampling_that_would_fill_the_memory_is_refused(rate):
    with pytest.raises(DataError, match="would take too much memory"):
        rate_ratio(rate, 257)


def test_the_rates_of_releases_can_be_resampled_to_each_other():
    rates = (62.4725, 100, 124.945, 125, 128, 200, 240, 249.89, 250, 256, 257, 300, 360, 400, 500, 512, 977, 1000)
    assert all(rate_ratio(rate, to) for rate in rates for to in rates)


def test_band_pass_keeps_the_band_without_delay_and_removes_the_rest():
    inside = tone(10, 500)
    mixed = 3 + inside + tone(150, 500)
    assert np.allclose(bandpass(mixed, 500, 0.5, 47)[:, 1000:-1000], inside[:, 1000:-1000], atol=0.05)


def test_band_pass_accepts_signals_shorter_than_its_padding():
    assert bandpass(np.ones((12, 5)), 500, 0.5, 47).shape == (12, 5)


@pytest.mark.parametrize("band", [(0.5, 60), (0, 40), (40, 10)])
def test_a_band_that_does_not_fit_the_rate_is_refused(band):
    with pytest.raises(DataError, match="does not fit"):
        bandpass(tone(5, 100), 100, *band)


def test_z_scores_have_mean_0_and_deviation_1_in_each_lead():
    signal = np.random.default_rng(0).normal([[5], [-2]], [[3], [0.01]], (2, 1000)).astype(np.float32)
    scaled = zscore(signal)
    assert scaled.dtype == np.float32
    assert np.allclose(scaled.mean(axis=1), 0, atol=1e-5)
    assert np.allclose(scaled.std(axis=1), 1, atol=1e-5)


def test_flat_leads_stay_flat_even_after_a_filter():
    flat = np.full((1, 5000), 3.3)
    assert not zscore(flat).any()
    assert not zscore(bandpass(flat, 500, 0.5, 47)).any()
