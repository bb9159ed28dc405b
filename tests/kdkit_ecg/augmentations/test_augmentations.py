"""Augmentations are pure functions of (signal, rate, generator), and each has the effect that its docstring states."""

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
    """A simulated record in mV, read-only: an augmentation that writes to its input fails."""
    record = Simulator(seed=0, rate=RATE, length=2500, difficulty=0.2).record(3).signal.astype(np.float32)
    record.flags.writeable = False
    return record


def augmented(augmentation, signal, seed=0, rate=RATE):
    return augmentation(signal, rate, np.random.default_rng(seed))


@pytest.mark.parametrize("augmentation", EVERY, ids=lambda augmentation: type(augmentation).__name__)
def test_a_signal_depends_on_the_generator_alone(augmentation, signal):
    first, second = (augmented(augmentation, signal, seed=1) for _ in range(2))
    assert first.shape == signal.shape
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    assert first.tobytes() == second.tobytes() != augmented(augmentation, signal, seed=2).tobytes()


@pytest.mark.parametrize("augmentation", EVERY, ids=lambda augmentation: type(augmentation).__name__)
def test_a_signal_in_mv_stays_in_the_range_of_ecgs(augmentation, signal):
    for seed in range(20):
        output = augmented(augmentation, signal, seed)
        assert np.abs(output).max() < 1.5 * np.abs(signal).max() + 1
        assert np.abs(output - signal).mean() < np.abs(signal).mean() + 0.5


@pytest.mark.parametrize("augmentation", EVERY, ids=lambda augmentation: type(augmentation).__name__)
def test_the_repr_makes_the_same_augmentation_again(augmentation, signal):
    rebuilt = eval(repr(augmentation))
    assert rebuilt == augmentation
    assert augmented(rebuilt, signal).tobytes() == augmented(augmentation, signal).tobytes()


@pytest.mark.parametrize("augmentation", [BaselineWander(), PowerLine(), Scaling(), TimeWarp(), CutOut()])
def test_leads_keep_einthovens_and_goldbergers_laws(augmentation, signal):
    output = augmented(augmentation, signal).astype(float)
    assert np.allclose(output[2], output[1] - output[0], atol=1e-5)
    assert np.allclose(output[3], -(output[0] + output[1]) / 2, atol=1e-5)
    assert np.allclose(output[5], output[1] - output[0] / 2, atol=1e-5)


def test_leads_are_dropped_with_the_given_probability_but_never_all_of_them(signal):
    off = np.stack([~augmented(LeadDropout(0.3), signal, seed).any(axis=1) for seed in range(400)])
    assert off.mean() == pytest.approx(0.3, abs=0.03)
    assert (
        not np.stack([~augmented(LeadDropout(1.0), signal, seed).any(axis=1) for seed in range(20)]).all(axis=1).any()
    )
    dropped = augmented(LeadDropout(0.3), signal)
    stays = dropped.any(axis=1)
    assert np.array_equal(dropped[stays], signal[stays])


@pytest.mark.parametrize("decibels", [6.0, 20.0])
def test_white_noise_has_the_given_ratio_in_each_lead(decibels, signal):
    noise = augmented(GaussianNoise(decibels, decibels), signal) - signal
    ratio = 10 * np.log10(signal.var(axis=1) / noise.var(axis=1))
    assert np.allclose(ratio, decibels, atol=0.5)
    assert not augmented(GaussianNoise(), np.zeros((12, 100), np.float32)).any()


def test_wander_is_slow_and_has_the_given_size(signal):
    drifts = [augmented(BaselineWander(0.1), signal, seed) - signal for seed in range(50)]
    spectrum = np.mean([np.abs(np.fft.rfft(drift * np.hanning(2500), axis=1)) ** 2 for drift in drifts], axis=(0, 1))
    assert spectrum[: int(1.0 * 10)].sum() > 0.999 * spectrum.sum()  # below 1 Hz: 10 s make bins of 0.1 Hz
    assert 0.03 < np.sqrt(np.mean(np.square(drifts))) < 0.12


def test_a_hum_has_the_frequency_of_the_mains(signal):
    hum = augmented(PowerLine(hertz=(50.0,)), signal) - signal
    assert (np.abs(np.fft.rfft(hum, axis=1)).argmax(axis=1) == 500).all()
    with pytest.raises(RecipeError, match="a hum of 60 Hz cannot be sampled at 100 Hz"):
        augmented(PowerLine(), signal, rate=100.0)


def test_scaling_uses_one_factor_for_all_leads(signal):
    # Lead II, at a sample that is not zero.
    factors = [float(augmented(Scaling(0.5, 2.0), signal, seed)[1, 7] / signal[1, 7]) for seed in range(200)]
    assert 0.5 <= min(factors) < 0.6
    assert 1.7 < max(factors) <= 2
    assert np.mean(np.array(factors) > 1) == pytest.approx(0.5, abs=0.1)
    output = augmented(Scaling(0.5, 2.0), signal, seed=0)
    assert np.allclose(output, factors[0] * signal, rtol=1e-4, atol=1e-6)


def test_a_warp_moves_beats_by_at_most_its_share_and_keeps_their_height_and_the_ends(signal):
    times = np.arange(2500) / RATE
    pulses = np.exp(-0.5 * ((times[:, None] - np.arange(1, 10)) / 0.03) ** 2).sum(axis=1)
    train = np.tile(pulses, (12, 1)).astype(np.float32)
    moved = []
    for seed in range(20):
        warped = augmented(TimeWarp(0.1), train, seed)[0]
        # Local maxima above half the height of a pulse.
        peaks = np.flatnonzero((warped[1:-1] > warped[:-2]) & (warped[1:-1] >= warped[2:]) & (warped[1:-1] > 0.5)) + 1
        assert len(peaks) == 9
        assert warped[peaks].min() > 0.97
        moved.append(np.abs(np.diff(peaks) / RATE - 1).max())
        assert np.allclose(warped[[0, -1]], train[0, [0, -1]], atol=1e-4)
    assert 0.02 < max(moved) < 0.21


def test_a_warp_by_a_tiny_share_keeps_the_signal(signal):
    assert np.allclose(augmented(TimeWarp(1e-7), signal), signal, atol=1e-3)


def test_cut_out_sets_one_stretch_to_zero_in_all_leads(signal):
    # An offset of 10 mV, so that no sample of the signal itself is 0.
    output = augmented(CutOut(1.0), signal + np.float32(10))
    cut = ~output.any(axis=0)
    assert 0 < cut.sum() <= RATE
    assert np.ptp(np.flatnonzero(cut)) == cut.sum() - 1
    assert (output[:, ~cut] == signal[:, ~cut] + np.float32(10)).all()


def test_sometimes_applies_an_augmentation_with_the_given_probability(signal):
    same = [augmented(Sometimes(Scaling(), 0.25), signal, seed) is signal for seed in range(400)]
    assert np.mean(same) == pytest.approx(0.75, abs=0.06)


def test_mixup_gives_the_sample_itself_the_larger_share():
    shares = [Mixup(0.4).share(np.random.default_rng(seed)) for seed in range(300)]
    assert 0.5 <= min(shares) < 0.6
    assert max(shares) > 0.999


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LeadDropout(1.5), r"probability must be a number in \[0, 1\]; got 1.5"),
        (lambda: GaussianNoise(30, 10), "expected low <= high for the signal-to-noise ratio in dB; got 30 and 10"),
        (lambda: Scaling(-1, 1), "low must be a finite number above 0; got -1"),
        (lambda: TimeWarp(0.6), "expected 0 < share < 0.5 for TimeWarp; got 0.6"),
        (lambda: TimeWarp(knots=2.5), "knots must be an integer of at least 2; got 2.5"),
        (lambda: GaussianNoise(10, float("inf")), "expected low <= high .*; got 10 and inf"),
        (lambda: PowerLine(hertz=(50.0, float("nan"))), "frequencies of mains"),
        (lambda: Sometimes(Mixup()), r"Mixup\(alpha=0.2\) is not an augmentation of one sample"),
        (lambda: PowerLine(hertz=()), "frequencies of mains"),
        (lambda: CutOut(0), "seconds must be a finite number above 0; got 0"),
        (lambda: Mixup(0), "alpha must be a finite number above 0; got 0"),
        (lambda: Sometimes(CutOut(), -0.1), r"probability must be a number in \[0, 1\]; got -0.1"),
        (lambda: check_augmentations([CutOut()], 10), "expected a tuple for augment"),
        (lambda: check_augmentations((CutOut,), 10), "pass an object"),
        (lambda: check_augmentations((3,), 10), "3 is not an augmentation"),
        (lambda: check_augmentations((Mixup(), CutOut()), 10), "put it last"),
        (lambda: check_augmentations((lambda signal, rate, generator: signal,), 10), "does not show its options"),
    ],
)
def test_invalid_options_are_refused(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


@pytest.mark.parametrize("augmentation", [*EVERY, Mixup()], ids=lambda augmentation: type(augmentation).__name__)
def test_the_cache_key_depends_on_the_augmentation(augmentation):
    with_augmentation, plain = (
        facts_of_data(Synthetic(train=2, validation=1, test=1, length=200, draws=2, augment=augment))
        for augment in ((augmentation,), ())
    )
    assert with_augmentation["augment"] != plain["augment"]


@dataclass(frozen=True)
class FirstLead:
    def __call__(self, signal, rate, generator):
        return signal[:1]


@dataclass(frozen=True)
class InPlace:
    def __call__(self, signal, rate, generator):
        signal += 1
        return signal


def test_an_augmentation_cannot_write_to_the_record():
    data = Synthetic(train=1, validation=1, test=1, length=50, draws=2, augment=(InPlace(),))
    with pytest.raises(ValueError, match="read-only"):
        data.train.batch([0], 0)


def test_an_augmentation_that_changes_the_shape_is_refused():
    data = Synthetic(train=1, validation=1, test=1, length=50, draws=2, augment=(FirstLead(),))
    with pytest.raises(RecipeError, match=r"FirstLead\(\) must keep the shape \(leads, time\), \(12, 50\); it"):
        data.train.batch([0], 0)


def test_the_cache_key_depends_on_the_code_of_a_user_defined_augmentation(tmp_path):
    # The same class name and repr, but another factor inside the code.
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
