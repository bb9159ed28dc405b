"""Records follow the laws of the leads, and depend on the seed and the id alone."""

import numpy as np
import pytest

from kdkit_ecg.simulator import Simulator

HARD = Simulator(seed=3, rate=100, length=1000, difficulty=1)


def test_leads_keep_einthovens_and_goldbergers_laws_with_and_without_noise():
    for number in range(20):
        record = HARD.record(number)
        for first, second, third, avr, avl, avf, *_ in (record.signal, record.clean):
            np.testing.assert_allclose(third, second - first, atol=1e-12)
            np.testing.assert_allclose(avr, -(first + second) / 2, atol=1e-12)
            np.testing.assert_allclose(avl, first - second / 2, atol=1e-12)
            np.testing.assert_allclose(avf, second - first / 2, atol=1e-12)


def test_patients_do_not_depend_on_the_rate_and_the_difficulty():
    easy = Simulator(seed=3, rate=257, length=300, difficulty=0)
    assert all(HARD.patient(number) == easy.patient(number) for number in range(50))


@pytest.mark.parametrize("rate", [257, 500])
def test_a_higher_rate_samples_the_same_heart_more_finely(rate):
    # A pacing spike is narrower than a sample at 100 Hz, so paced records differ by more.
    numbers = [number for number in range(100) if "PR" not in HARD.patient(number).findings][:10]
    fine = Simulator(seed=3, rate=rate, length=10 * rate, difficulty=1)
    for number in numbers:
        slow, fast = HARD.record(number).clean, fine.record(number).clean
        times = np.arange(1000) / 100
        sampled = [np.interp(times, np.arange(10 * rate) / rate, lead) for lead in fast]
        assert np.abs(slow - sampled)[:, :990].max() < 0.06


def test_pacing_spikes_are_visible_at_100_hz():
    for number in [number for number in range(200) if "PR" in HARD.patient(number).findings][:6]:
        easy = Simulator(seed=3, rate=100, length=1000, difficulty=0).record(number)
        spikes = np.round((easy.beats.onsets - 0.02) * 100).astype(int)
        spikes = spikes[(spikes > 5) & (spikes < 990)]
        around = easy.clean[11][spikes[:, None] + [-3, 0]]
        assert (around[:, 1] - around[:, 0] > 0.25).all()


@pytest.mark.parametrize("length", [1, 7, 250, 3000])
def test_a_record_of_any_length_is_finite(length):
    short = Simulator(seed=3, rate=100, length=length, difficulty=0.5)
    for number in range(40):
        signal = short.record(number).signal
        assert signal.shape == (12, length)
        assert np.isfinite(signal).all()
