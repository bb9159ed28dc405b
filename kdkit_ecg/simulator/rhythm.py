"""Decide when a heart beats, and compute the activity of its atria between the beats."""

from typing import NamedTuple

import numpy as np

from kdkit_ecg.simulator.heart import BeatKind, Heart
from kdkit_ecg.simulator.lead_projection import Array
from kdkit_ecg.simulator.randomness import RangeSampler


class Beats(NamedTuple):
    """QRS onsets, s from the start of the record (a few lie before and after it), and the kind of each beat."""

    onsets: Array
    kinds: tuple[BeatKind, ...]

    def onsets_of(self, kind: BeatKind) -> Array:
        """Return the onsets of the beats of this kind."""
        onsets: Array = self.onsets[np.array([beat_kind == kind for beat_kind in self.kinds])]
        return onsets


def sample_beats(heart: Heart, duration: float, sampler: RangeSampler) -> Beats:
    """Return the beats of a record of this duration, in s."""
    gaps = sample_intervals(heart, duration, sampler)
    first = -heart.interval * sampler.generator.random() - heart.interval
    onsets = first + np.concatenate([[0.0], np.cumsum(gaps)])
    kinds: list[BeatKind] = ["usual"] * len(onsets)
    for index, kind in sample_premature_beats(heart, onsets, duration, sampler):
        kinds[index] = kind
        gap = onsets[index] - onsets[index - 1]
        # Early by a quarter or more, but after the T wave of the previous beat.
        coupling = min(max(gap * sampler.within(easy=(0.56, 0.66), hard=(0.66, 0.78)), heart.qt + 0.04), 0.85 * gap)
        if kind == "atrial":  # it resets the sinus node, so the pause after it is less than compensatory
            onsets[index:] -= gap - coupling
            onsets[index + 1 :] += sampler.uniform(0.08, 0.2) * gap
        else:  # it does not affect the sinus node: a fully compensatory pause
            onsets[index] = onsets[index - 1] + coupling
    return Beats(onsets, tuple(kinds))


def sample_intervals(heart: Heart, duration: float, sampler: RangeSampler) -> Array:
    """Return the intervals between beats, (beats,) in s, for longer than the record."""
    count = int(np.ceil(duration / heart.interval * 1.5)) + 5
    if heart.scatter > 0:  # fibrillation: successive intervals are independent
        gaps = np.exp(heart.scatter * sampler.generator.standard_normal(count))
        gaps *= heart.interval / gaps[: max(1, int(duration / heart.interval))].mean()
        refractory: Array = np.maximum(gaps, 0.3)  # the AV node conducts nothing sooner
        return refractory
    breath = sampler.uniform(3.5, 5.0)  # s per breath
    cycle = np.sin(2 * np.pi * (np.arange(count) * heart.interval / breath + sampler.generator.random()))
    # Normalised over the beats inside the record, so that they swing as far as heart.swing.
    inside = cycle[2 : max(4, int(duration / heart.interval))]
    regular: Array = heart.interval + heart.swing * (cycle - inside.mean()) / max(float(np.ptp(inside)), 1e-9)
    return regular


def sample_premature_beats(
    heart: Heart, onsets: Array, duration: float, sampler: RangeSampler
) -> list[tuple[int, BeatKind]]:
    """Return the numbers of the beats that are premature, and their kinds."""
    # In the middle of the record, so that the pauses are visible, even in a window that moves a little.
    inside = np.flatnonzero((onsets > 0.2 * duration) & (onsets < 0.8 * duration))
    candidates = inside[sampler.generator.integers(0, 3) :: 3]
    if len(candidates) < len(heart.early):
        candidates = inside[::2]
    most = int(sampler.generator.integers(max(2, len(heart.early)), 4))
    chosen = np.sort(sampler.generator.permutation(candidates)[:most])
    # Checked last, so that every heart draws the same number of numbers, with or without premature beats.
    return [(int(index), heart.early[number % len(heart.early)]) for number, index in enumerate(chosen) if heart.early]


def atrial_activity(heart: Heart, times: Array, sampler: RangeSampler) -> Array:
    """Return the vector of fluttering or fibrillating atria, (3, time) in mV; 0 in any other heart."""
    if heart.atria == "fluttering":
        return flutter_waves(heart, times, sampler)
    if heart.atria == "fibrillating":
        return fibrillation_waves(heart, times, sampler)
    return np.zeros((3, len(times)))


def flutter_waves(heart: Heart, times: Array, sampler: RangeSampler) -> Array:
    """Return a saw-tooth at the atrial rate, (3, time) in mV."""
    # The first four harmonics only: band-limited, so that the saw-tooth does not alias at a low sampling rate.
    phase = 2 * np.pi * (heart.atrial_rate / 60 * times + sampler.generator.random())
    tooth = sum(np.sin(order * phase) / order for order in range(1, 5))
    # Counter-clockwise around the tricuspid ring: negative in the inferior leads, positive in V1.
    direction = np.array([sampler.uniform(-0.1, 0.2), -1.0, sampler.uniform(0.3, 0.6)])
    return heart.atrial_size * direction[:, None] * tooth


def fibrillation_waves(heart: Heart, times: Array, sampler: RangeSampler) -> Array:
    """Return a sum of wavelets that come and go, each with its own rate and direction, (3, time) in mV."""
    wavelets = []
    for _ in range(4):
        rate = heart.atrial_rate / 60 * sampler.uniform(0.8, 1.2)
        drift = 0.8 * np.sin(2 * np.pi * (sampler.uniform(0.1, 0.4) * times + sampler.generator.random()))
        swell = 1 + 0.5 * np.sin(2 * np.pi * (sampler.uniform(0.1, 0.5) * times + sampler.generator.random()))
        wave = swell * np.sin(2 * np.pi * (rate * times + sampler.generator.random()) + drift)
        wavelets.append(sampler.generator.normal(0, (0.3, 0.5, 0.7))[:, None] * wave)
    waves: Array = heart.atrial_size * np.sum(wavelets, axis=0)
    return waves
