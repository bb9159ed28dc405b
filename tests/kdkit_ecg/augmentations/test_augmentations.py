"""Augmentations are pure functions of (signal, rate, generator), and each changes what it says."""

from dataclasses import dataclass

import numpy as np
import pytest

from kdkit import RecipeError
from kdkit.teachers.cache import facts_of_data
from kdkit_ecg import Synthetic
from kdkit_ecg.augmentations import (
    BaselineWander,
    CutOut,
    GaussianNoise,
    LeadDropout,
    Mixup,
    PowerLine,
    Scaling,
    Sometimes,
    TimeWarp,
    check_augmentations,
)
from kdkit_ecg.simulator import Simulator

RATE = 250.0
EVERY = [
    BaselineWander(),
    CutOut(),
    GaussianNoise(),
    LeadDropout(0.5),
    PowerLine(),
    Scaling(),
    Sometimes(CutOut(), 0.7),
    TimeWarp(),
]


@pytest.fixture(scope="module")
def signal():
    """A simulated record in mV, which no augmentation may write to."""
    made = Simulator(seed=0, rate=RATE, length=2500, difficulty=0.2).record(3).signal.astype(np.float32)
    made.flags.writeable = False
    return made


def changed(augmentation, signal, seed=0, rate=RATE):
    return augmentation(signal, rate, np.random.default_rng(seed))


@pytest.mark.parametrize("augmentation", EVERY, ids=lambda each: type(each).__name__)
def test_the_same_generator_makes_the_same_bits_and_another_other_ones(augmentation, signal):
    first, again = (changed(augmentation, signal, seed=1) for _ in range(2))
    assert first.shape == signal.shape
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    assert first.tobytes() == again.tobytes() != changed(augmentation, signal, seed=2).tobytes()


@pytest.mark.parametrize("augmentation", EVERY, ids=lambda each: type(each).__name__)
def test_a_signal_in_mv_stays_one(augmentation, signal):
    for seed in range(20):
        ours = changed(augmentation, signal, seed)
        assert np.abs(ours).max() < 1.5 * np.abs(signal).max() + 1
        assert np.abs(ours - signal).mean() < np.abs(signal).mean() + 0.5


@pytest.mark.parametrize("augmentation", EVERY, ids=lambda each: type(each).__name__)
def test_its_repr_tells_all_that_it_does(augmentation, signal):
    again = eval(repr(augmentation))
    assert again == augmentation
    assert changed(again, signal).tobytes() == changed(augmentation, signal).tobytes()


@pytest.mark.parametrize("augmentation", [BaselineWander(), PowerLine(), Scaling(), TimeWarp(), CutOut()])
def test_what_leads_have_to_do_with_each_other_stays(augmentation, signal):
    ours = changed(augmentation, signal).astype(float)
    assert np.allclose(ours[2], ours[1] - ours[0], atol=1e-5)
    assert np.allclose(ours[3], -(ours[0] + ours[1]) / 2, atol=1e-5)
    assert np.allclose(ours[5], ours[1] - ours[0] / 2, atol=1e-5)


def test_leads_fall_off_as_often_as_said_and_never_all(signal):
    off = np.stack([~changed(LeadDropout(0.3), signal, seed).any(axis=1) for seed in range(400)])
    assert off.mean() == pytest.approx(0.3, abs=0.03)
    assert not np.stack([~changed(LeadDropout(1.0), signal, seed).any(axis=1) for seed in range(20)]).all(axis=1).any()
    kept = changed(LeadDropout(0.3), signal)
    stays = kept.any(axis=1)
    assert np.array_equal(kept[stays], signal[stays])


@pytest.mark.parametrize("decibels", [6.0, 20.0])
def test_noise_has_the_ratio_asked_for_in_each_lead(decibels, signal):
    noise = changed(GaussianNoise(decibels, decibels), signal) - signal
    ratio = 10 * np.log10(signal.var(axis=1) / noise.var(axis=1))
    assert np.allclose(ratio, decibels, atol=0.5)
    assert not changed(GaussianNoise(), np.zeros((12, 100), np.float32)).any()


def test_wander_is_slow_and_of_the_size_asked_for(signal):
    drifts = [changed(BaselineWander(0.1), signal, seed) - signal for seed in range(50)]
    spectrum = np.mean([np.abs(np.fft.rfft(drift * np.hanning(2500), axis=1)) ** 2 for drift in drifts], axis=(0, 1))
    assert spectrum[: int(1.0 * 10)].sum() > 0.999 * spectrum.sum()  # below 1 Hz: 10 s make bins of 0.1 Hz
    assert 0.03 < np.sqrt(np.mean(np.square(drifts))) < 0.12


def test_the_hum_is_at_the_mains_frequency(signal):
    hum = changed(PowerLine(hertz=(50.0,)), signal) - signal
    assert (np.abs(np.fft.rfft(hum, axis=1)).argmax(axis=1) == 500).all()
    with pytest.raises(RecipeError, match="a hum of 60 Hz does not show at 100 Hz"):
        changed(PowerLine(), signal, rate=100.0)


def test_a_gain_is_one_factor_for_all_leads(signal):
    factors = [float(changed(Scaling(0.5, 2.0), signal, seed)[1, 7] / signal[1, 7]) for seed in range(200)]
    assert 0.5 <= min(factors) < 0.6
    assert 1.7 < max(factors) <= 2
    assert np.mean(np.array(factors) > 1) == pytest.approx(0.5, abs=0.1)
    ours = changed(Scaling(0.5, 2.0), signal, seed=0)
    assert np.allclose(ours, factors[0] * signal, rtol=1e-4, atol=1e-6)


def test_a_warp_moves_beats_by_its_share_and_keeps_their_height_and_the_ends(signal):
    times = np.arange(2500) / RATE
    pulses = np.exp(-0.5 * ((times[:, None] - np.arange(1, 10)) / 0.03) ** 2).sum(axis=1)
    train = np.tile(pulses, (12, 1)).astype(np.float32)
    moved = []
    for seed in range(20):
        warped = changed(TimeWarp(0.1), train, seed)[0]
        peaks = np.flatnonzero((warped[1:-1] > warped[:-2]) & (warped[1:-1] >= warped[2:]) & (warped[1:-1] > 0.5)) + 1
        assert len(peaks) == 9
        assert warped[peaks].min() > 0.97
        moved.append(np.abs(np.diff(peaks) / RATE - 1).max())
        assert np.allclose(warped[[0, -1]], train[0, [0, -1]], atol=1e-4)
    assert 0.02 < max(moved) < 0.21


def test_a_warp_of_next_to_nothing_leaves_the_signal(signal):
    assert np.allclose(changed(TimeWarp(1e-7), signal), signal, atol=1e-3)


def test_a_stretch_is_cut_out_of_all_leads_at_once(signal):
    ours = changed(CutOut(1.0), signal + np.float32(10))
    gone = ~ours.any(axis=0)
    assert 0 < gone.sum() <= RATE
    assert np.ptp(np.flatnonzero(gone)) == gone.sum() - 1
    assert (ours[:, ~gone] == signal[:, ~gone] + np.float32(10)).all()


def test_sometimes_is_as_often_as_said(signal):
    same = [changed(Sometimes(Scaling(), 0.25), signal, seed) is signal for seed in range(400)]
    assert np.mean(same) == pytest.approx(0.75, abs=0.06)


def test_mixup_keeps_the_larger_share():
    shares = [Mixup(0.4).share(np.random.default_rng(seed)) for seed in range(300)]
    assert 0.5 <= min(shares) < 0.6
    assert max(shares) > 0.999


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LeadDropout(1.5), "a share from 0 to 1, not 1.5"),
        (lambda: GaussianNoise(30, 10), "between low and high, not 30 and 10"),
        (lambda: Scaling(-1, 1), "a factor is above 0"),
        (lambda: TimeWarp(0.6), "TimeWarp takes 0 < share < 0.5"),
        (lambda: PowerLine(hertz=()), "frequencies of mains"),
        (lambda: CutOut(0), "above 0, not 0"),
        (lambda: Mixup(0), "above 0, not 0"),
        (lambda: Sometimes(CutOut(), -0.1), "a share from 0 to 1"),
        (lambda: check_augmentations([CutOut()], 10), "augment is a tuple"),
        (lambda: check_augmentations((CutOut,), 10), "pass an object"),
        (lambda: check_augmentations((3,), 10), "3 is no augmentation"),
        (lambda: check_augmentations((Mixup(), CutOut()), 10), "put it last"),
        (lambda: check_augmentations((lambda signal, rate, generator: signal,), 10), "does not tell what it does"),
    ],
)
def test_options_that_make_no_sense_are_refused(make, said):
    with pytest.raises(RecipeError, match=said):
        make()


@pytest.mark.parametrize("augmentation", [*EVERY, Mixup()], ids=lambda each: type(each).__name__)
def test_what_teachers_answer_about_signals_that_it_changed_can_be_recorded(augmentation):
    changed, plain = (
        facts_of_data(Synthetic(train=2, validation=1, test=1, length=200, draws=2, augment=augment))
        for augment in ((augmentation,), ())
    )
    assert changed["augment"] != plain["augment"]


def test_answers_about_signals_that_an_augmentation_of_other_code_changed_are_kept_apart(tmp_path):
    source = "@dataclass(frozen=True)\nclass Louder:\n    def __call__(self, signal, rate, generator):\n"

    def facts(factor):
        space = {"dataclass": dataclass, "__name__": "recipe"}
        path = tmp_path / f"recipe_{factor}.py"  # the key holds source text, so the code needs a file
        path.write_text(f"{source}        return {factor} * signal\n")
        exec(compile(path.read_text(), str(path), "exec"), space)
        return facts_of_data(
            Synthetic(train=2, validation=1, test=1, length=200, draws=2, augment=(space["Louder"](),))
        )

    assert facts(2) == facts(2) != facts(3)
